//! The process supervisor.
#![forbid(unsafe_code)]

pub mod avail;
pub mod conf;
pub mod limits;
pub mod notice;
pub mod params;
pub mod plan;
pub mod service;
pub mod timer;
pub mod wakeup;
