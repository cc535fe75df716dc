//! sys - the system calls that need unsafe code, each wrapped once
//!
//! The only file of the workspace with unsafe code. A wrapper makes one call, takes and gives owned
//! or borrowed descriptors, and turns -1 into an [`io::Error`].

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
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

/// Descriptors that a program keeps lie at or above this number, so that the low ones, which a
/// child gets by number, are free when it is started.
pub const HIGH_FD: i32 = 512;

/// Moves a descriptor to [`HIGH_FD`] or above, close-on-exec. Where the process may not have that
/// many open files it stays where it is, close-on-exec too.
///
/// # Errors
/// The process has no free descriptor.
pub fn set_high(fd: OwnedFd) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    match fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH_FD)) {
        // SAFETY: fcntl has just made this descriptor, so nobody else owns it.
        Ok(raw) => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        Err(nix::errno::Errno::EINVAL) => {
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            Ok(fd)
        }
        Err(error) => Err(error.into()),
    }
}

/// A wall clock time in the local time zone, as syslog stamps it: `Nov  5 09:07:03`.
#[must_use]
pub fn local_time(since_epoch: Duration) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = libc::time_t::try_from(since_epoch.as_secs()).unwrap_or(libc::time_t::MAX);
    // SAFETY: tm is plain data; all zero bits are a value of it.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type; localtime_r keeps neither.
    let filled = unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) };
    if filled.is_null() {
        return "Jan  1 00:00:00".to_owned();
    }
    let month = usize::try_from(tm.tm_mon)
        .ok()
        .and_then(|m| MONTHS.get(m))
        .unwrap_or(&"Jan");
    format!(
        "{month} {:2} {:02}:{:02}:{:02}",
        tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec
    )
}
