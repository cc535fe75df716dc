//! metricsd - the metrics of the master for a scraper; see master(8)
#![forbid(unsafe_code)]

use std::process::ExitCode;

use master::metricsd::Metricsd;
use worker_proto::single;

fn main() -> ExitCode {
    single::main::<Metricsd>("metricsd")
}
