//! queue_clock - the queue's time and the wall clock's
//!
//! The queue counts on the monotonic clock, from 1970 as the wall clock had it at the start, so that
//! setting the wall clock moves no timer. What is stored is the wall clock's time: the difference is
//! followed.

use std::time::Duration;

use worker_proto::clock::Time;

/// Less than this is no step of the wall clock.
const STEP: Duration = Duration::from_secs(10);

/// The queue's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueClock {
    monotonic: Time,
    wall: Duration,
    /// What the wall clock was set by since, in seconds.
    offset: i64,
}

impl QueueClock {
    pub(super) const fn new(monotonic: Time, wall: Duration) -> Self {
        Self { monotonic, wall, offset: 0 }
    }

    /// The queue's time.
    pub(super) fn now(self, now: Time) -> Time {
        Time::from_start(self.wall + now.since(self.monotonic))
    }

    /// The loop's time for a time of the queue.
    pub(super) fn back(self, at: Time) -> Time {
        self.monotonic + at.since(Time::from_start(self.wall))
    }

    /// What is stored for a time of the queue: seconds since 1970.
    pub(super) fn stored(self, at: Time) -> u64 {
        at.since_start().as_secs().saturating_add_signed(self.offset)
    }

    /// The queue's time for what was stored, which is not believed: nothing is due later than `most`
    /// from now.
    pub(super) fn due(self, now: Time, stored: u64, most: Duration) -> Time {
        self.queue_time(stored).min(self.now(now) + most)
    }

    /// The queue's time for when something was stored; never later than now.
    pub(super) fn past(self, now: Time, stored: u64) -> Time {
        self.queue_time(stored).min(self.now(now))
    }

    fn queue_time(self, stored: u64) -> Time {
        // Some 500,000,000 years are enough for any sum with it.
        let seconds = stored.min(1 << 54).saturating_add_signed(-self.offset);
        Time::from_start(Duration::from_secs(seconds))
    }

    /// Compares with the wall clock. When that was set, gives by how many seconds.
    pub(super) fn follow(&mut self, now: Time, wall: Duration) -> Option<i64> {
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let thought = seconds(self.now(now).since_start()).saturating_add(self.offset);
        let step = seconds(wall).saturating_sub(thought);
        if step.unsigned_abs() < STEP.as_secs() {
            return None;
        }
        self.offset = self.offset.saturating_add(step);
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const YEAR: i64 = 365 * 86400;
    const MOST: Duration = Duration::from_secs(1800);

    fn step() -> impl Strategy<Value = i64> {
        prop_oneof![
            Just(0),
            Just(86400),
            Just(-86400),
            Just(YEAR),
            Just(-YEAR),
            -100_000..100_000_i64
        ]
    }

    proptest! {
        /// A clock set back by a year left every message waiting for a year.
        #[test]
        fn whatever_the_clock_does_nothing_waits_longer_than_the_longest_pause(
            before in step(), moves in prop::collection::vec((1_u64..100_000, step()), 0..8),
            pause in 0_u64..1800, after in step(),
        ) {
            let year_56 = 56 * YEAR.unsigned_abs();
            let mut wall = year_56.saturating_add_signed(before);
            let mut now = Time::from_start(Duration::from_secs(77));
            let mut clock = QueueClock::new(now, Duration::from_secs(wall));
            for (seconds, step) in moves {
                let queue_now = clock.now(now);
                let due = queue_now + Duration::from_secs(pause);
                let stored = clock.stored(due);
                now = now + Duration::from_secs(seconds);
                wall = (wall + seconds).saturating_add_signed(step);
                let noticed = clock.follow(now, Duration::from_secs(wall));
                prop_assert_eq!(noticed.is_some(), step.unsigned_abs() >= 10);
                // Timers that run are not touched by it.
                prop_assert_eq!(clock.now(now), queue_now + Duration::from_secs(seconds));
                // Times stored from now on agree with the wall clock, up to a drift too small for a step.
                let told = clock.stored(clock.now(now)).abs_diff(wall);
                prop_assert!(told < 10, "{} s off", told);
                // Nothing that was stored before waits longer from now, or has come later.
                prop_assert!(clock.due(now, stored, MOST) <= clock.now(now) + MOST);
                prop_assert!(clock.past(now, stored) <= clock.now(now));
            }
            // A restart, by a clock that was set meanwhile.
            let stored = clock.stored(clock.now(now) + Duration::from_secs(pause));
            let wall = wall.saturating_add_signed(after);
            let next = QueueClock::new(Time::ZERO, Duration::from_secs(wall));
            prop_assert!(next.due(Time::ZERO, stored, MOST) <= next.now(Time::ZERO) + MOST);
            prop_assert!(next.back(next.due(Time::ZERO, stored, MOST)) <= Time::ZERO + MOST);
            prop_assert!(next.due(Time::ZERO, u64::MAX, MOST) <= next.now(Time::ZERO) + MOST);
        }
    }
}
