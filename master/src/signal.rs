//! signal - signals as something the loop can read
//!
//! A handler writes a byte into a socket and raises a flag; several signals merge. The deadly signals
//! of bugs (SEGV, BUS, ILL, FPE) keep their default: a core dump says more than a handler could.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::{flag, low_level::pipe};
use worker_proto::sys;

/// Signals since they were last asked for.
#[derive(Debug)]
pub struct Signals {
    wake: UnixStream,
    flags: [(i32, Arc<AtomicBool>); 5],
}

impl Signals {
    /// Catches SIGHUP, SIGCHLD, SIGTERM, SIGINT and SIGQUIT from now on, and ignores what comes without
    /// anybody having sent it: a log at the limit of file sizes, processor time that is used up. Workers
    /// have the defaults.
    ///
    /// # Errors
    /// A handler cannot be set.
    pub fn catch() -> io::Result<Self> {
        let high = |s: UnixStream| sys::set_high(OwnedFd::from(s)).map(UnixStream::from);
        let (wake, write) = UnixStream::pair()?;
        let (wake, write) = (high(wake)?, high(write)?);
        wake.set_nonblocking(true)?;
        sys::ignore_signal(Signal::SIGXFSZ)?;
        sys::ignore_signal(Signal::SIGXCPU)?;
        let flags = [SIGHUP, SIGCHLD, SIGTERM, SIGINT, SIGQUIT]
            .map(|signal| (signal, Arc::new(AtomicBool::new(false))));
        for (signal, raised) in &flags {
            // The flag first: whoever is woken finds it raised.
            flag::register(*signal, Arc::clone(raised))?;
            pipe::register(*signal, high(write.try_clone()?)?)?;
        }
        Ok(Self { wake, flags })
    }

    /// How many descriptors this takes: the end that is read, and a writer for each signal.
    #[must_use]
    pub const fn descriptors(&self) -> usize {
        1 + self.flags.len()
    }

    /// The signals that came since the last call, each once.
    pub fn take(&mut self) -> Vec<i32> {
        let mut bytes = [0; 64];
        // Emptied first: a signal that comes in between is seen now or wakes the loop again.
        while self.wake.read(&mut bytes).is_ok_and(|n| n > 0) {}
        let raised = self.flags.iter().filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        raised.map(|(signal, _)| *signal).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
