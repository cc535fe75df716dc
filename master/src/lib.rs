//! The process supervisor.
#![forbid(unsafe_code)]

pub mod avail;
pub mod belfry;
pub mod cgroup;
pub mod channel;
pub mod cli;
pub mod conf;
pub mod config;
pub mod control;
pub mod daemon;
pub mod event_loop;
pub mod layout;
pub mod limits;
pub mod listen;
pub mod lock;
pub mod manual;
pub mod metricsd;
pub mod monitor;
pub mod names;
pub mod notice;
pub mod notify;
pub mod owner;
pub mod params;
pub mod plan;
pub mod remains;
pub mod report;
pub mod request;
pub mod resume;
pub mod service;
pub mod signal;
pub mod snapshot;
pub mod stage2;
pub mod table;
pub mod timer;
pub mod trigger;
pub mod wakeup;
