//! wait - wait for a state, never for a time

use std::thread;
use std::time::Duration;

use worker_proto::clock::Time;

/// How long a state may take to come on a loaded machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Looks again and again until there is something to see.
///
/// # Panics
/// The deadline has passed; the message says what was waited for.
pub fn until<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    within(limit, look).unwrap_or_else(|| panic!("waited {limit:?} in vain for: {what}"))
}

/// The same without a panic.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Time::now() + limit;
    loop {
        if let Some(seen) = look() {
            return Some(seen);
        }
        if Time::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
