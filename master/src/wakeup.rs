//! wakeup - when a service's timer fires
//!
//! Unconditional: at the start, at each reload, and then each period. Conditional (`?`): the same
//! from the service's first worker on, and again only from the first worker after a reload (N01).

use serde::{Deserialize, Serialize};
use worker_proto::clock::Time;

use crate::service::Wakeup;

/// The wakeup timer of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    wakeup: Option<Wakeup>,
    next: Option<Time>,
}

impl Alarm {
    /// The timer of a service that starts, or is read again, now.
    #[must_use]
    pub fn new(now: Time, wakeup: Option<Wakeup>) -> Self {
        Self { wakeup, next: wakeup.filter(|w| !w.conditional).map(|_| now) }
    }

    /// A worker was started.
    pub fn used(&mut self, now: Time) {
        if self.next.is_none() && self.wakeup.is_some() {
            self.next = Some(now);
        }
    }

    /// When [`Alarm::fire`] is to be called.
    #[must_use]
    pub const fn next(&self) -> Option<Time> {
        self.next
    }

    /// Whether to wake the service now; counts the next period from now.
    pub fn fire(&mut self, now: Time) -> bool {
        let due = self.next.is_some_and(|at| at <= now);
        if due {
            self.next = self.wakeup.map(|w| now + w.period);
        }
        due
    }

    /// A worker has left: what it has left undone is seen to `then`, not a whole period later.
    pub fn lost(&mut self, then: Time) {
        self.next = self.next.map(|at| at.min(then));
    }

    /// No more wakeups.
    pub const fn stop(&mut self) {
        self.wakeup = None;
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    fn wakeup(conditional: bool) -> Option<Wakeup> {
        Some(Wakeup { period: Duration::from_secs(60), conditional })
    }

    #[test]
    fn n01_unconditional_fires_at_once_and_each_period() {
        let mut alarm = Alarm::new(at(5), wakeup(false));
        assert!(alarm.fire(at(5)));
        assert!(!alarm.fire(at(64)));
        assert_eq!(alarm.next(), Some(at(65)));
        assert!(alarm.fire(at(65)));
    }

    #[test]
    fn n01_conditional_waits_for_the_first_worker() {
        let mut alarm = Alarm::new(at(5), wakeup(true));
        assert_eq!(alarm.next(), None);
        assert!(!alarm.fire(at(500)));
        alarm.used(at(600));
        assert!(alarm.fire(at(600)));
        alarm.used(at(610));
        assert_eq!(alarm.next(), Some(at(660)));
    }

    #[test]
    fn a_lost_worker_is_replaced_before_the_period_is_over() {
        let mut alarm = Alarm::new(at(5), wakeup(false));
        alarm.fire(at(5));
        alarm.lost(at(7));
        assert_eq!(alarm.next(), Some(at(7)));
        assert!(alarm.fire(at(7)));
        alarm.lost(at(90));
        assert_eq!(alarm.next(), Some(at(67)), "never later than it would have been");
        let mut unused = Alarm::new(at(5), wakeup(true));
        unused.lost(at(6));
        assert_eq!(unused.next(), None);
    }

    #[test]
    fn a_service_without_a_timer_never_fires() {
        let mut alarm = Alarm::new(at(5), None);
        alarm.used(at(6));
        assert_eq!(alarm.next(), None);
    }
}
