//! resume - this program goes on where another has left off
//!
//! `master --can-resume`, with a [`Snapshot`] on standard input, says whether it could; `master
//! --resume FD OPTION...` does. The first is run by the old program in a process of its own, the
//! second is what it becomes.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use worker_proto::diagnostic::Fault;
use worker_proto::log::{self, Sink};
use worker_proto::sys;

use crate::config::{self, Config, Problems};
use crate::names::Names;
use crate::snapshot::Snapshot;

/// Asks for [`check`].
pub const CHECK_OPTION: &str = "--can-resume";
/// Makes a program go on; the descriptor of a [`Snapshot`] follows.
pub const OPTION: &str = "--resume";
/// What the answer of a program that can resume starts with.
pub const CAN_RESUME: &str = "can resume, version ";

/// Says on standard output whether this program can go on from the snapshot on standard input, and
/// what it thinks of the configuration that it would read then.
#[must_use]
pub fn check() -> ExitCode {
    let answer = match try_out() {
        Ok(()) => format!("{CAN_RESUME}{}", env!("CARGO_PKG_VERSION")),
        Err(problems) => problems.to_string().trim_end().to_owned(),
    };
    // The asker may have lost its patience.
    let _ = writeln!(io::stdout(), "{answer}");
    ExitCode::SUCCESS
}

fn try_out() -> Result<(), Problems> {
    let snapshot = Snapshot::read(io::stdin().lock())?;
    running_config(&snapshot)?;
    config::read(&snapshot.directory, None, &Names::asking()).map(drop)
}

/// The snapshot of the program before, by the word behind [`OPTION`].
///
/// # Errors
/// It is none.
pub fn take(word: &OsString) -> Result<(Snapshot, Config), Fault> {
    let number = word.to_string_lossy().parse().unwrap_or(-1);
    let file = sys::take_fd(number).map_err(|e| Fault::io(OPTION, &e))?;
    let snapshot = Snapshot::read(std::fs::File::from(file))?;
    let config = running_config(&snapshot)
        .map_err(|problems| Fault::new("main.cf in force", problems.to_string().trim_end()))?;
    Ok((snapshot, config))
}

/// Starts the log that the parameters name, under a name of the master.
pub fn start_log(config: &Config, name: &str, verbose: bool) {
    let tag = format!("{}/{name}", config.common.syslog_name);
    let logged = log::init(&tag, verbose, &Sink::choose(&config.common));
    log::log_panics();
    if let Err(fault) = logged {
        crate::notice::Notice::Trouble { text: fault.to_string() }.log();
    }
}

fn running_config(snapshot: &Snapshot) -> Result<Config, Problems> {
    let mut config = config::running(&snapshot.directory, snapshot.main_cf.clone())?;
    config.common.queue_directory.clone_from(&snapshot.queue_directory);
    config.common.data_directory.clone_from(&snapshot.data_directory);
    Ok(config)
}
