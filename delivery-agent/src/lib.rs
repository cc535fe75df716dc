//! The alert queue.
#![forbid(unsafe_code)]

pub mod outcome;
