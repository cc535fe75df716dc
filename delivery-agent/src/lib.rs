//! The alert queue.
#![forbid(unsafe_code)]

pub mod outcome;
pub mod smtp;
