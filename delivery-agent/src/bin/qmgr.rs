//! qmgr - the queue's manager, a worker; see qmgr in main.cf(5)
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    worker_proto::multi::main::<delivery_agent::manager::Manager>("qmgr")
}
