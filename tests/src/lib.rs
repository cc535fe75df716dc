//! Black-box tests of the whole system: real master, real workers, real sockets, real peers.
//!
//! This library is the harness; each file in `tests/` is a scenario.

pub mod bench;
pub mod binaries;
pub mod descriptors;
pub mod differential;
pub mod end_of_test;
pub mod fuzz_properties;
pub mod instance;
pub mod logbook;
pub mod net;
pub mod open_metrics;
pub mod peer;
pub mod probe;
pub mod process;
pub mod relay;
pub mod smtp_sink;
pub mod wait;
pub mod world;

pub use instance::Instance;
