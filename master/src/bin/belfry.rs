//! belfry - the operator's command; see belfry(8)
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    master::belfry::main(std::env::args_os().skip(1).collect())
}
