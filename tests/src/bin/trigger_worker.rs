//! trigger_worker - writes down what it is told, in the trigger form of worker

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use worker_proto::diagnostic::Fault;
use worker_proto::server::{Configured, Limit};
use worker_proto::trigger::{self, Trigger};

struct Recorder;

impl Trigger for Recorder {
    const LIMIT: Limit = Limit::One;

    fn configure(_: &mut Configured) -> Result<Self, Fault> {
        Ok(Self)
    }

    fn request(&mut self, bytes: &[u8]) {
        let Some(trace) = std::env::var_os("TRACE") else { return };
        let line = format!("{}\n", String::from_utf8_lossy(bytes).escape_default());
        let file = OpenOptions::new().append(true).create(true).open(trace);
        let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
    }
}

fn main() -> ExitCode {
    trigger::main::<Recorder>("trigger_worker")
}
