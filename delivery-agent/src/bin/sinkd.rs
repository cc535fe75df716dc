//! sinkd - an SMTP server that keeps what it gets in a Maildir, for tests
#![forbid(unsafe_code)]

use std::process::ExitCode;

use delivery_agent::sink::Sink;
use worker_proto::single;

fn main() -> ExitCode {
    single::main::<Sink>("sinkd")
}
