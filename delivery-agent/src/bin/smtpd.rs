//! smtpd - takes mail over SMTP and hands it to qmgr
#![forbid(unsafe_code)]

use std::process::ExitCode;

use delivery_agent::smtpd::Smtpd;
use worker_proto::single;

fn main() -> ExitCode {
    single::main::<Smtpd>("smtpd")
}
