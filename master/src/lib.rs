//! The process supervisor.
#![forbid(unsafe_code)]

pub mod avail;
pub mod channel;
pub mod cli;
pub mod conf;
pub mod limits;
pub mod listen;
pub mod lock;
pub mod notice;
pub mod owner;
pub mod params;
pub mod plan;
pub mod service;
pub mod signal;
pub mod table;
pub mod timer;
pub mod trigger;
pub mod wakeup;
