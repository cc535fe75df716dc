//! The process supervisor.
#![forbid(unsafe_code)]
