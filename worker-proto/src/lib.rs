//! What a Postfix-style master and its workers must agree on, and the skeletons workers are built on.

pub mod abi;
pub mod clock;
pub mod diagnostic;
mod expand;
pub mod getopt;
pub mod log;
pub mod logical;
pub mod main_cf;
pub mod params;
pub mod status;
#[expect(unsafe_code, reason = "the one file of the workspace with unsafe code")]
pub mod sys;
pub mod time_value;
