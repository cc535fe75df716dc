//! alertq - look at the queue and change it
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    delivery_agent::alertq::main(std::env::args_os().skip(1).collect())
}
