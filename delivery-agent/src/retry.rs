//! retry - when to try again: a clock for each relay, a clock for each message
//!
//! What is wrong with a relay is no message's fault, and what a relay says of a message is no
//! relay's. Pure functions and values; jitter comes from a number the caller gives.

use std::time::Duration;

use worker_proto::clock::Time;

/// Bounds of the pauses between two attempts of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageRule {
    /// `minimal_backoff_time`
    pub least: Duration,
    /// `maximal_backoff_time`
    pub most: Duration,
}

impl MessageRule {
    /// The pause after `attempts` attempts that a relay has put off (R3): doubling, bounded, and
    /// 20 % less to 20 % more.
    #[must_use]
    pub fn pause(&self, attempts: u32, seed: u64) -> Duration {
        let factor = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        jitter(self.least.saturating_mul(factor.max(1)).min(self.most), seed)
    }
}

/// The first and the longest pause before a relay that is down is probed (R1).
const PROBE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What is known about one relay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayClock {
    down: Option<Down>,
    last: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Down {
    since: Time,
    failures: u32,
    probe: Time,
    probing: bool,
}

impl RelayClock {
    /// Whether messages may be sent there: it is up, or it is time for one to try.
    #[must_use]
    pub fn usable(&self, now: Time) -> bool {
        self.down.as_ref().is_none_or(|down| !down.probing && down.probe <= now)
    }

    /// Whether it is up as far as is known.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.down.is_none()
    }

    /// Since when it is down, and when it is probed.
    #[must_use]
    pub fn down(&self) -> Option<(Time, Time)> {
        self.down.as_ref().map(|d| (d.since, d.probe))
    }

    /// When it may be tried again; None while it is up, or is being tried.
    #[must_use]
    pub fn next_probe(&self) -> Option<Time> {
        self.down.as_ref().filter(|down| !down.probing).map(|down| down.probe)
    }

    /// What it said last, or what failed.
    #[must_use]
    pub fn last(&self) -> &str {
        &self.last
    }

    /// A message is on its way to find out.
    pub fn probing(&mut self) {
        if let Some(down) = &mut self.down {
            down.probing = true;
        }
    }

    /// It works. True: it was down before.
    pub fn succeeded(&mut self, reply: &str) -> bool {
        reply.clone_into(&mut self.last);
        self.down.take().is_some()
    }

    /// It does not work. True: it was up before. News from agents that were on their way together
    /// are one failure.
    pub fn failed(&mut self, now: Time, reply: &str, seed: u64) -> bool {
        reply.clone_into(&mut self.last);
        let Some(down) = &mut self.down else {
            let probe = now + jitter(PROBE.0, seed);
            self.down = Some(Down { since: now, failures: 1, probe, probing: false });
            return true;
        };
        if down.probing || down.probe <= now {
            down.failures = down.failures.saturating_add(1);
            let factor = 1_u32.checked_shl(down.failures - 1).unwrap_or(u32::MAX);
            down.probe = now + jitter(PROBE.0.saturating_mul(factor).min(PROBE.1), seed);
            down.probing = false;
        }
        false
    }

    /// The probe came to nothing: the agent ended, or never reached it.
    pub fn probe_lost(&mut self) {
        if let Some(down) = &mut self.down {
            down.probing = false;
        }
    }

    /// Probe it at once (an operator asks).
    pub fn probe_now(&mut self, now: Time) {
        if let Some(down) = &mut self.down {
            down.probe = now;
        }
    }
}

/// 20 % less to 20 % more.
fn jitter(pause: Duration, seed: u64) -> Duration {
    // The finalizer of splitmix64 spreads seeds that differ by little.
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let thousandths = 800 + u32::try_from((x ^ (x >> 31)) % 401).unwrap_or(200);
    pause * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: MessageRule =
        MessageRule { least: Duration::from_secs(30), most: Duration::from_secs(1800) };

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    proptest! {
        #[test]
        fn r3_pauses_grow_to_the_bound(attempts in 1..200_u32, seed in any::<u64>()) {
            let pause = RULE.pause(attempts, seed).as_secs_f64();
            let plain = (30.0 * 2_f64.powi(i32::try_from(attempts.min(20)).unwrap() - 1)).min(1800.0);
            prop_assert!((plain * 0.799..=plain * 1.201).contains(&pause), "{} {}", attempts, pause);
        }

        #[test]
        fn r1_probes_back_off_and_never_end(rounds in 1..60_u32, seed in any::<u64>()) {
            let mut clock = RelayClock::default();
            let mut now = at(0);
            for round in 1..=rounds {
                prop_assert!(clock.usable(now));
                clock.probing();
                prop_assert_eq!(clock.failed(now, "no", seed.wrapping_add(round.into())), round == 1);
                let (_, probe) = clock.down().unwrap();
                let pause = probe.since(now).as_secs_f64();
                let plain = (5.0 * 2_f64.powi(i32::try_from(round.min(20)).unwrap() - 1)).min(300.0);
                prop_assert!((plain * 0.799..=plain * 1.201).contains(&pause));
                prop_assert!(!clock.usable(now));
                now = probe;
            }
            prop_assert!(clock.succeeded("250 ok"));
            prop_assert!(clock.usable(now) && clock.is_up());
        }
    }

    #[test]
    fn r1_one_message_probes_and_the_others_wait() {
        let mut clock = RelayClock::default();
        assert!(clock.failed(at(0), "refused", 1));
        assert!(clock.usable(at(10)));
        clock.probing();
        assert!(!clock.usable(at(10)));
        clock.probe_lost();
        assert!(clock.usable(at(10)));
    }

    #[test]
    fn r1_agents_that_fail_together_are_one_failure() {
        let mut clock = RelayClock::default();
        assert!(clock.failed(at(0), "refused", 1));
        for _ in 0..20 {
            assert!(!clock.failed(at(1), "refused", 1));
        }
        assert!(clock.usable(at(7)));
    }
}
