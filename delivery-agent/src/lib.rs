//! The alert queue.
#![forbid(unsafe_code)]

pub mod agent;
pub mod alertq;
pub mod alerts_cf;
pub mod listing;
pub mod maildrop;
pub mod manager;
pub mod outcome;
pub mod params;
pub mod queue;
pub mod relay;
pub mod retry;
pub mod sendmail;
pub mod smtp;
pub mod store;
pub mod wire;
