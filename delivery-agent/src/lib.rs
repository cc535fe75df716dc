//! The alert queue.
#![forbid(unsafe_code)]
