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

/// The pause between two bare connections to a relay that cannot be reached, the first one between
/// two messages to a relay that fails, and the longest of these (R1).
const PROBE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The pause after `failures` failures of a relay (R1).
#[must_use]
pub fn probe_pause(failures: u32, seed: u64) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    jitter(PROBE.0.saturating_mul(factor).min(PROBE.1), seed)
}

/// How a relay is as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// It works, or was not asked yet.
    #[default]
    Up,
    /// It accepts connections and then fails: one message at a time finds out.
    Fails,
    /// It accepts no connection: a bare connection finds out, which costs no message.
    Unreachable,
}

/// What is known about one relay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayClock {
    health: Health,
    since: Time,
    failures: u32,
    probe: Time,
    probing: bool,
    /// It counts as down. A session that ended over a message leaves that open: the next message,
    /// which is sent at once, shows which of the two was at fault.
    down: bool,
    last: String,
}

impl RelayClock {
    /// Whether a message may be sent there: it is up, or it is time for one to try.
    #[must_use]
    pub fn usable(&self, now: Time) -> bool {
        match self.health {
            Health::Up => true,
            Health::Fails => !self.probing && self.probe <= now,
            Health::Unreachable => false,
        }
    }

    /// How it is.
    #[must_use]
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Whether it is up as far as is known.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.health, Health::Up)
    }

    /// Whether a message ended a session, and no other one has shown yet whose fault that was.
    #[must_use]
    pub const fn in_question(&self) -> bool {
        matches!(self.health, Health::Fails) && !self.down
    }

    /// Since when it is down.
    #[must_use]
    pub fn down_since(&self) -> Option<Time> {
        self.down.then_some(self.since)
    }

    /// When it may be tried again; None while it is up, or is being tried.
    #[must_use]
    pub fn next_probe(&self) -> Option<Time> {
        (!self.is_up() && !self.probing).then_some(self.probe)
    }

    /// Whether a bare connection should be made now.
    #[must_use]
    pub fn wants_connection(&self, now: Time) -> bool {
        self.health == Health::Unreachable && !self.probing && self.probe <= now
    }

    /// What it said last, or what failed.
    #[must_use]
    pub fn last(&self) -> &str {
        &self.last
    }

    /// A message or a bare connection is on its way to find out.
    pub const fn probing(&mut self) {
        self.probing = !self.is_up();
    }

    /// It works. True: it was down before.
    pub fn works(&mut self, reply: &str) -> bool {
        let was_down = self.down;
        *self = Self { last: reply.to_owned(), ..Self::default() };
        was_down
    }

    /// A bare connection was accepted: a message may try it now.
    pub fn answers(&mut self, now: Time) {
        if self.health == Health::Unreachable {
            (self.health, self.probe, self.probing) = (Health::Fails, now, false);
        }
    }

    /// A session ended over a message. As long as it is up that may be the message's fault, and the
    /// next message finds out at once. True: it was not down before and is now.
    pub fn broke(&mut self, now: Time, reply: &str, seed: u64, by_probe: bool) -> bool {
        if self.is_up() {
            reply.clone_into(&mut self.last);
            (self.health, self.since, self.probe) = (Health::Fails, now, now);
            return false;
        }
        self.fails(now, reply, seed, by_probe)
    }

    /// It accepts connections, but does not work. True: it was not down before. What was on its way
    /// when it went down tells nothing new.
    pub fn fails(&mut self, now: Time, reply: &str, seed: u64, by_probe: bool) -> bool {
        reply.clone_into(&mut self.last);
        if self.is_known(now, by_probe) {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let probe = now + probe_pause(self.failures, seed);
        self.go_down(now, Health::Fails, probe, by_probe)
    }

    /// It accepts no connection. True: it was not down before.
    pub fn unreachable(&mut self, now: Time, reply: &str, seed: u64, by_probe: bool) -> bool {
        reply.clone_into(&mut self.last);
        if self.is_known(now, by_probe) {
            return false;
        }
        self.go_down(now, Health::Unreachable, now + probe_pause(1, seed), by_probe)
    }

    fn is_known(&self, now: Time, by_probe: bool) -> bool {
        self.down && !by_probe && (self.probing || self.probe > now)
    }

    /// The probe came to nothing: the agent ended, or never reached it.
    pub const fn probe_lost(&mut self) {
        self.probing = false;
    }

    /// Probe it at once (an operator asks).
    pub const fn probe_now(&mut self, now: Time) {
        self.probe = now;
    }

    fn go_down(&mut self, now: Time, health: Health, probe: Time, by_probe: bool) -> bool {
        let fresh = !std::mem::replace(&mut self.down, true);
        if fresh {
            self.since = now;
        }
        (self.health, self.probe) = (health, probe);
        self.probing &= !by_probe;
        fresh
    }
}

/// A number that looks like chance: the finalizer of splitmix64 spreads seeds that differ by little.
#[must_use]
pub const fn spread(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 20 % less to 20 % more.
fn jitter(pause: Duration, seed: u64) -> Duration {
    let thousandths = 800 + u32::try_from(spread(seed) % 401).unwrap_or(200);
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
                prop_assert_eq!(clock.fails(now, "no", seed.wrapping_add(round.into()), true), round == 1);
                let probe = clock.next_probe().unwrap();
                let pause = probe.since(now).as_secs_f64();
                let plain = (5.0 * 2_f64.powi(i32::try_from(round.min(20)).unwrap() - 1)).min(300.0);
                prop_assert!((plain * 0.799..=plain * 1.201).contains(&pause));
                prop_assert!(!clock.usable(now));
                now = probe;
            }
            prop_assert!(clock.works("250 ok"));
            prop_assert!(clock.usable(now) && clock.is_up());
        }

        #[test]
        fn r1_a_relay_out_of_reach_is_connected_to_every_five_seconds(seed in any::<u64>()) {
            let mut clock = RelayClock::default();
            let mut now = at(0);
            for round in 0..50_u64 {
                clock.probing();
                let fresh = clock.unreachable(now, "refused", seed.wrapping_add(round), true);
                prop_assert_eq!(fresh, round == 0);
                prop_assert!(!clock.usable(now + PROBE.1), "no message is spent on it");
                let probe = clock.next_probe().unwrap();
                prop_assert!((4.0..=6.0).contains(&probe.since(now).as_secs_f64()));
                prop_assert!(clock.wants_connection(probe));
                now = probe;
            }
            clock.answers(now);
            prop_assert!(clock.usable(now) && !clock.is_up(), "now a message tries it");
        }
    }

    #[test]
    fn r1_one_message_probes_and_the_others_wait() {
        let mut clock = RelayClock::default();
        assert!(clock.fails(at(0), "refused", 1, false));
        assert!(clock.usable(at(10)));
        clock.probing();
        assert!(!clock.usable(at(10)));
        clock.probe_lost();
        assert!(clock.usable(at(10)));
    }

    #[test]
    fn r1_agents_that_fail_together_are_one_failure() {
        let mut clock = RelayClock::default();
        assert!(clock.fails(at(0), "refused", 1, false));
        for _ in 0..20 {
            assert!(!clock.fails(at(1), "refused", 1, false));
        }
        assert!(clock.usable(at(7)));
    }

    #[test]
    fn r6_a_session_that_ends_over_one_message_does_not_make_the_others_wait() {
        let mut clock = RelayClock::default();
        assert!(!clock.broke(at(0), "421 closing", 1, false));
        assert!(clock.usable(at(0)) && clock.down_since().is_none());
        assert!(
            clock.broke(at(0), "421 closing", 1, false),
            "the next one shows that it is the relay"
        );
        assert!(!clock.usable(at(1)) && clock.usable(at(6)));
    }
}
