//! monitor - who waits for the master to be ready
//!
//! With `-w` a parent waits for one byte on the standard output of the master proper (A10).

use std::io::{self, Read};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;
use std::os::fd::AsFd;
use worker_proto::diagnostic::Fault;

/// Tells the master proper that somebody waits.
pub const WAITED_FOR: &str = "BELFRY_MASTER_WAIT";
/// How long the parent waits.
const PATIENCE: Duration = Duration::from_secs(100);

/// Starts this program again as the master proper and waits until it serves or has failed. Its
/// reasons are on standard error, which it has from us (W17).
///
/// # Errors
/// It cannot be started.
pub fn start_and_wait(
    program: &std::path::Path,
    args: &[std::ffi::OsString],
) -> Result<ExitCode, Fault> {
    let fault = |e: &io::Error| Fault::io(format!("start {}", program.display()), e);
    let mut child = Command::new(program)
        .args(args)
        .env(WAITED_FOR, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| fault(&e))?;
    let Some(mut output) = child.stdout.take() else {
        return Ok(ExitCode::FAILURE);
    };
    let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut fds, patience).is_ok_and(|n| n > 0);
    if !ready {
        let _ = child.kill();
        return Err(Fault::new("daemon initialization timeout", "killed after 100 seconds"));
    }
    if output.read(&mut [0; 1]).is_ok_and(|n| n == 1) {
        return Ok(ExitCode::SUCCESS);
    }
    let _ = child.wait();
    Err(Fault::new("daemon initialization failure", "see the reasons above"))
}

/// Tells the parent that the master serves.
pub fn ready() {
    // A parent that has given up hears nothing.
    let _ = unistd::write(io::stdout(), b"\0");
}
