//! sys - the system calls that need unsafe code, each wrapped once
//!
//! The only file of the workspace with unsafe code. A wrapper makes one call, takes and gives owned
//! or borrowed descriptors, and turns -1 into an [`io::Error`].

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The monotonic clock.
pub(crate) fn monotonic() -> Duration {
    // CLOCK_MONOTONIC cannot fail on Linux; zero keeps the type simple.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default()
}

/// The words of strerror(3) for an error, without Rust's "(os error N)".
#[must_use]
pub fn errno_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}
