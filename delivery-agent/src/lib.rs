//! The alert queue.
#![forbid(unsafe_code)]

pub mod alertq;
pub mod alerts_cf;
pub mod listing;
pub mod maildrop;
pub mod manager;
pub mod outcome;
pub mod queue;
pub mod retry;
pub mod smtp;
pub mod store;
pub mod wire;
