//! reports - what becomes of a message after a lease

use worker_proto::clock::Time;

use super::case::{Case, Gate, Judge};
use super::types::{Leased, State};
use super::{Entry, Queue, RelayChange, Verdict};
use crate::outcome::{Finding, Outcome, RelayNews};
use crate::retry::probe_pause;
use crate::store::{MessageNo, RecipientState};

/// Messages whose agents died this often are held (Q7).
const MOST_DEATHS: u8 = 3;
/// Deliveries after which a relay that takes only so many sessions is tried with one more.
const RISE: u32 = 1000;
/// A relay that was to be asked about a message, and was not although it is not known to be down.
const NOT_SENT: std::time::Duration = std::time::Duration::from_secs(5);

impl Queue {
    /// A lease's report. None when the lease is not known: it was ended before.
    pub fn report(
        &mut self,
        now: Time,
        lease: u64,
        outcomes: &[(usize, Outcome)],
    ) -> Option<Verdict> {
        let leased = self.leases.remove(&lease)?;
        self.end_probe(&leased);
        let entry = *self.entries.get(&leased.no)?;
        let mut verdict = Verdict::of(leased.no);
        let mut case = self.cases.remove(&leased.no).unwrap_or_else(|| self.new_case());
        leased.positions.iter().for_each(|&position| case.open(position));
        let told: Vec<_> = outcomes
            .iter()
            .filter_map(|(at, outcome)| Some((*leased.positions.get(*at)?, outcome)))
            .collect();
        verdict.change = self.works_after_all(now, &leased, &told);
        let deferred = told
            .iter()
            .any(|(_, o)| matches!(o, Outcome::RejectedTemp { .. } | Outcome::InDoubt { .. }));
        let attempts = entry.attempts + u32::from(deferred);
        let by =
            Judge { now, lane: entry.lane, next_cycle: self.next_cycle(now, &entry, attempts) };
        let mut judged = false;
        for &(position, outcome) in &told {
            verdict.outcomes.push((position, outcome.clone()));
            if let Outcome::Delivered { relay, reply } = outcome {
                case.end(position);
                self.widen(relay);
                verdict.marks.push((position, RecipientState::Delivered, reply.clone()));
            } else if let Some(relay) = outcome.relay().and_then(|name| self.relay_index(name)) {
                case.judge(position, relay, outcome, by);
                judged = true;
            }
        }
        judged |= self.note_breaks(now, &leased, &mut case);
        self.pause_what_was_not_asked(now, &leased, &told, &mut case);
        let old = now.since(entry.arrived) >= self.limits.lifetime;
        let tried = |position| told.iter().any(|(p, o)| *p == position && o.relay().is_some());
        self.end_refused(&mut case, |p| old && tried(p), attempts, &mut verdict);
        if case.is_empty() {
            self.forget(leased.no);
            return Some(verdict);
        }
        if judged {
            let due = match case.earliest() {
                Gate::From(at) => at.max(now),
                Gate::Open | Gate::Shut => now,
            };
            verdict.deferred = Some((attempts, due, case.why.clone(), false));
        }
        if let Some(entry) = self.entries.get_mut(&leased.no) {
            entry.attempts = attempts;
        }
        if case.is_plain() {
            self.close_case(leased.no);
            self.wait(leased.no, now);
        } else {
            self.keep(now, leased.no, case);
        }
        Some(verdict)
    }

    /// The agent of a lease has ended without a report. The message is tried again, or held when it
    /// has outlived too many agents (Q7). None when the lease is not known.
    pub fn agent_died(&mut self, now: Time, lease: u64) -> Option<Verdict> {
        let leased = self.leases.remove(&lease)?;
        self.end_probe(&leased);
        let entry = self.entries.get_mut(&leased.no)?;
        entry.deaths += 1;
        let (deaths, attempts) = (entry.deaths, entry.attempts);
        let mut verdict = Verdict::of(leased.no);
        if deaths >= MOST_DEATHS {
            self.hold(leased.no);
            let why = format!("{deaths} delivery agents died on it");
            verdict.deferred = Some((attempts, now, why, true));
        } else {
            self.wait(leased.no, now);
        }
        Some(verdict)
    }

    /// What is older than `maximal_queue_lifetime` and has no relay left that it could be sent to,
    /// while relays work for others (R4). To be called in each turn, before [`Queue::next_task`].
    pub fn expire(&mut self, now: Time) -> Vec<Verdict> {
        self.advance(now);
        if !self.relays.iter().any(|relay| relay.clock.is_up()) {
            return Vec::new();
        }
        let mut verdicts = Vec::new();
        for no in self.overdue.iter().copied().collect::<Vec<_>>() {
            let Some(entry) = self.entries.get(&no).filter(|e| e.state == State::Case) else {
                continue;
            };
            let last_try = |relay: &super::relays::Relay| {
                relay.clock.is_up() && relay.ready.contains(entry.lane, no)
            };
            if self.relays.iter().any(last_try) {
                continue;
            }
            let attempts = entry.attempts;
            let Some(mut case) = self.cases.get(&no).cloned() else { continue };
            let mut verdict = Verdict::of(no);
            self.end_refused(&mut case, |_| true, attempts, &mut verdict);
            self.forget(no);
            verdicts.push(verdict);
        }
        verdicts
    }

    fn new_case(&self) -> Case {
        Case::new(self.relays.len())
    }

    fn relay_index(&self, name: &str) -> Option<usize> {
        self.relays.iter().position(|relay| relay.name == name)
    }

    /// A delivery: the relay may get more at a time.
    fn widen(&mut self, name: &str) {
        let most = self.limits.agents;
        let Some(index) = self.relay_index(name) else { return };
        // As long as it does not answer for some it gets no more.
        if self.slow(index).is_none() {
            let relay = &mut self.relays[index];
            relay.delivered += 1;
            if relay.delivered >= RISE {
                (relay.most, relay.delivered) = (relay.most.saturating_add(1), 0);
            }
            relay.window = (relay.window + 1).min(most).min(relay.most);
        }
    }

    /// A relay that counts as down has judged a message, in a session that was told to work before:
    /// it works.
    fn works_after_all(
        &mut self,
        now: Time,
        leased: &Leased,
        told: &[(i64, &Outcome)],
    ) -> Option<RelayChange> {
        let judged = |outcome: &Outcome| match outcome {
            Outcome::Delivered { .. } => true,
            Outcome::RejectedTemp { .. } | Outcome::RejectedPerm { .. } => {
                outcome.relay().and_then(|name| self.relay_index(name)) == leased.probe
            }
            Outcome::InDoubt { .. } | Outcome::NotSent { .. } => false,
        };
        let is_down = |outcome: &Outcome| {
            let index = outcome.relay().and_then(|name| self.relay_index(name));
            index.is_some_and(|index| !self.relays[index].clock.is_up())
        };
        let (_, outcome) = told.iter().find(|(_, o)| judged(o) && is_down(o))?;
        let relay = outcome.relay()?.to_owned();
        let (finding, reply) = (Finding::Works, outcome.text().to_owned());
        self.news(now, None, &RelayNews { relay, finding, reply })
    }

    /// When a relay that defers is asked again (R3); the last time is at the end of the lifetime (R4).
    fn next_cycle(&mut self, now: Time, entry: &Entry, attempts: u32) -> Time {
        self.seed = self.seed.wrapping_add(1);
        let next = now + self.limits.message.pause(attempts.max(1), self.seed);
        let end = entry.arrived + self.limits.lifetime;
        if end > now { next.min(end.max(now + self.limits.message.least)) } else { next }
    }

    /// Notes the sessions that the message has ended. True when it is known to do that.
    fn note_breaks(&mut self, now: Time, leased: &Leased, case: &mut Case) -> bool {
        let mut again = false;
        for &relay in &leased.broke {
            let count = case.breaks(relay).count + 1;
            again |= count > 1;
            self.seed = self.seed.wrapping_add(1);
            case.broke(relay, now + probe_pause(count, self.seed));
            if let Some(relay) = self.relays.get(relay).filter(|_| case.why.is_empty()) {
                case.why = format!("{}: {}", relay.name, relay.clock.last());
            }
        }
        again
    }

    /// A relay that could have been asked and was not, so that the message is not sent in a loop.
    fn pause_what_was_not_asked(
        &self,
        now: Time,
        leased: &Leased,
        told: &[(i64, &Outcome)],
        case: &mut Case,
    ) {
        for &position in &leased.positions {
            let asked = |relay: usize| {
                let name = &self.relays[relay].name;
                told.iter().any(|(p, o)| *p == position && o.relay() == Some(name))
            };
            let in_doubt =
                told.iter().any(|(p, o)| *p == position && matches!(o, Outcome::InDoubt { .. }));
            let usable = |relay: &usize| self.relays[*relay].clock.usable(now);
            for &relay in leased.relays.iter().filter(|r| usable(r)) {
                if !asked(relay) && !in_doubt {
                    case.not_before(position, relay, now + NOT_SENT);
                }
            }
        }
    }

    /// Ends recipients that every relay has refused, and those that have expired.
    fn end_refused(
        &self,
        case: &mut Case,
        expired: impl Fn(i64) -> bool,
        attempts: u32,
        verdict: &mut Verdict,
    ) {
        let names: Vec<_> = self.relays.iter().map(|relay| relay.name.as_str()).collect();
        let why = if case.why.is_empty() { "no relay took it" } else { &case.why };
        let why = format!("expired after {attempts} attempts: {why}");
        for position in case.positions().collect::<Vec<_>>() {
            let refused = case.refusals(position, &names);
            let expired = refused.is_none() && expired(position);
            if expired {
                verdict.word = "expired";
            }
            if let Some(reply) = refused.or_else(|| expired.then(|| why.clone())) {
                case.end(position);
                verdict.marks.push((position, RecipientState::Failed, reply));
            }
        }
    }

    /// The message is tried again, by what its case says.
    fn keep(&mut self, now: Time, no: MessageNo, case: Case) {
        let Some(entry) = self.entries.get(&no) else { return };
        let end = entry.arrived + self.limits.lifetime;
        if end <= now {
            self.overdue.insert(no);
        } else {
            self.expiring.insert((end, no));
        }
        self.cases.insert(no, case);
        self.place(now, no);
    }
}
