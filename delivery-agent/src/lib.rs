//! The alert queue.
#![forbid(unsafe_code)]

pub mod outcome;
pub mod queue;
pub mod retry;
pub mod smtp;
pub mod store;
pub mod wire;
