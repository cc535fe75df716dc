//! clock - where time enters
//!
//! A program reads [`Time::now`] once per turn of its loop and hands the value down. Policy takes a
//! `Time` and never asks. Wall time is for log lines, Date headers and expiry alone.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A point on the monotonic clock, counted from an arbitrary start.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Time(Duration);

impl Time {
    /// The clock's start; for tests and as "long ago".
    pub const ZERO: Self = Self(Duration::ZERO);

    /// Reads the monotonic clock (CLOCK_MONOTONIC).
    #[must_use]
    pub fn now() -> Self {
        Self(crate::sys::monotonic())
    }

    /// A point this long after the clock's start; for simulated time.
    #[must_use]
    pub const fn from_start(since: Duration) -> Self {
        Self(since)
    }

    /// Time since the clock's start.
    #[must_use]
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to this point; zero when it lies later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(rhs))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0.as_secs(), self.0.subsec_millis())
    }
}

/// Reads the wall clock, as time since 1970-01-01 00:00:00 UTC; zero if it is set earlier.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place where wall time enters")]
pub fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
