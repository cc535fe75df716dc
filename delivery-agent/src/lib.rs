//! The alert queue.
#![forbid(unsafe_code)]

pub mod address;
pub mod agent;
pub mod alertq;
pub mod alerts_cf;
pub mod aliases;
pub mod listing;
pub mod maildrop;
pub mod manager;
pub mod message;
pub mod networks;
pub mod outcome;
pub mod params;
pub mod queue;
pub mod relay;
pub mod retry;
pub mod sendmail;
pub mod sink;
pub mod smtp;
pub mod smtpd;
pub mod store;
pub mod submission;
pub mod wire;
