//! watchdog - a worker that makes no progress ends
//!
//! alarm(2) with its default effect: nothing of the program has to work for it. It is fed whenever
//! something has gone forward, so that a long session is not taken for a stuck one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::unistd::alarm;

/// Seconds; 0 while it is off.
static LIMIT: AtomicU32 = AtomicU32::new(0);

/// Ends the process unless it is fed or stopped within this time.
pub fn start(limit: Duration) {
    let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX).max(1);
    LIMIT.store(seconds, Ordering::Relaxed);
    alarm::set(seconds);
}

/// Something has gone forward: the time begins anew. Does nothing while it is off.
pub fn feed() {
    match LIMIT.load(Ordering::Relaxed) {
        0 => {}
        seconds => drop(alarm::set(seconds)),
    }
}

/// The work is done.
pub fn stop() {
    LIMIT.store(0, Ordering::Relaxed);
    alarm::cancel();
}
