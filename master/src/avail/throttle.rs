//! throttle - how long a service pauses after failures
//!
//! The first pause is short; each further failure doubles it, up to a limit, and it never gives up.
//! A worker that was started after the last failure and has served a client ends the row.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_proto::clock::Time;

/// Bounds of the pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleRule {
    /// The first pause. Equal to `most`, every pause is the same and without jitter: Postfix's way.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
}

/// The failures of a service in a row, and the pause after the last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Throttle {
    until: Option<Time>,
    failures: u32,
    last_failure: Time,
    /// State of a linear congruential generator: jitter wants to differ, not to surprise.
    seed: u64,
}

impl Throttle {
    /// No failure yet.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { until: None, failures: 0, last_failure: Time::ZERO, seed }
    }

    /// End of the pause, if there is one.
    #[must_use]
    pub const fn until(&self) -> Option<Time> {
        self.until
    }

    /// A worker failed: pause. A failure during a pause does not double it again: several workers
    /// that were started together tell of one cause.
    pub fn failure(&mut self, now: Time, rule: &ThrottleRule) {
        self.last_failure = now;
        if self.until.is_none() || self.failures == 0 {
            self.failures = self.failures.saturating_add(1);
        }
        let factor = 1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX);
        let pause = rule.first.saturating_mul(factor).min(rule.most);
        self.until = Some(now + if rule.first == rule.most { pause } else { self.jitter(pause) });
    }

    /// A worker started at `born` served a client.
    pub fn success(&mut self, born: Time) {
        if self.failures > 0 && born > self.last_failure {
            self.clear();
        }
    }

    /// The pause is over; the row of failures is not.
    pub const fn release(&mut self) {
        self.until = None;
    }

    /// Forgets everything.
    pub const fn clear(&mut self) {
        self.until = None;
        self.failures = 0;
    }

    /// The pause, 10 % less to 10 % more.
    fn jitter(&mut self, pause: Duration) -> Duration {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let thousandths = 900 + u32::try_from((self.seed >> 33) % 201).unwrap_or(0);
        pause * thousandths / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ThrottleRule =
        ThrottleRule { first: Duration::from_secs(1), most: Duration::from_secs(60) };

    #[test]
    fn w06_pauses_double_to_the_limit_and_never_give_up() {
        let mut throttle = Throttle::new(7);
        let mut now = Time::from_start(Duration::from_secs(100));
        for n in 0..100_u32 {
            throttle.failure(now, &RULE);
            let pause = throttle.until().unwrap().since(now).as_secs_f64();
            let plain = 2_f64.powi(i32::try_from(n.min(10)).unwrap()).min(60.0);
            assert!((plain * 0.89..=plain * 1.11).contains(&pause), "{n}: {pause}");
            now = throttle.until().unwrap();
            throttle.release();
        }
    }

    #[test]
    fn w06_success_of_a_newer_worker_ends_the_row() {
        let mut throttle = Throttle::new(7);
        let at = |s| Time::from_start(Duration::from_secs(s));
        throttle.failure(at(10), &RULE);
        throttle.success(at(9));
        assert!(throttle.until().is_some());
        throttle.success(at(11));
        assert!(throttle.until().is_none());
    }

    #[test]
    fn failures_during_a_pause_are_one_failure() {
        let mut throttle = Throttle::new(7);
        let at = |s| Time::from_start(Duration::from_secs(s));
        throttle.failure(at(10), &RULE);
        throttle.failure(at(10), &RULE);
        assert!(throttle.until().unwrap() < at(12));
    }

    #[test]
    fn k02_equal_bounds_are_a_constant_pause() {
        let rule = ThrottleRule { first: RULE.most, most: RULE.most };
        let mut throttle = Throttle::new(7);
        throttle.failure(Time::ZERO, &rule);
        assert_eq!(throttle.until(), Some(Time::ZERO + rule.most));
    }
}
