//! sendmail - hand in a message; also mailq and newaliases
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    delivery_agent::sendmail::main(&words)
}
