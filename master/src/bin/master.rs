//! master - start workers when clients knock; see master(8)
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    master::daemon::main(&words)
}
