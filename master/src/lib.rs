//! The process supervisor.
#![forbid(unsafe_code)]
pub mod limits;
