//! What a Postfix-style master and its workers must agree on, and the skeletons workers are built on.

pub mod abi;
pub mod client;
pub mod clock;
pub mod diagnostic;
pub mod directory;
mod expand;
pub mod files;
pub mod getopt;
pub mod identity;
pub mod jail;
pub mod log;
pub mod logical;
pub mod main_cf;
pub mod multi;
pub mod params;
pub mod server;
pub mod single;
pub mod status;
#[expect(unsafe_code, reason = "the one file of the workspace with unsafe code")]
pub mod sys;
pub mod time_value;
pub mod trigger;
pub mod watchdog;
