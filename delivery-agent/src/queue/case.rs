//! case - a message that did not simply go out: which relay has said what of which recipient
//!
//! Each recipient has at each relay the time from which it may be asked there: at once, from a time
//! on (the relay deferred it, or it is in doubt), or not at all any more. All else follows from that.
//! Kept in memory: after a restart the relays are asked again.

use std::collections::BTreeMap;
use std::time::Duration;

use worker_proto::clock::Time;

use crate::outcome::Outcome;
use crate::wire::Lane;

/// Copies of a message that may have arrived at one relay; then it gets no more (S5).
pub(super) const MOST_COPIES: u8 = 3;
/// In doubt: the same relay is asked again after this long, doubling; another one after that (S5).
const DOUBT: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(600));

/// From when on a relay may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Gate {
    #[default]
    Open,
    From(Time),
    Shut,
}

impl Gate {
    pub(super) fn is_open(self, now: Time) -> bool {
        match self {
            Self::Open => true,
            Self::From(at) => at <= now,
            Self::Shut => false,
        }
    }
}

/// What one relay has said of one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Standing {
    gate: Gate,
    doubts: u8,
    /// Why the gate is shut.
    refusal: String,
}

/// One recipient that is still to be delivered to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    at: Vec<Standing>,
    /// In doubt at this relay: the others wait until then.
    doubt: Option<(usize, Time)>,
}

impl Open {
    fn gate(&self, relay: usize) -> Gate {
        let own = self.at.get(relay).map_or(Gate::Shut, |s| s.gate);
        match self.doubt {
            Some((at, until)) if at != relay => own.max(Gate::From(until)),
            _ => own,
        }
    }
}

/// How a message broke sessions with a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Breaks {
    pub(super) count: u32,
    /// Its own time to be sent there again.
    pub(super) until: Time,
}

/// What an outcome is judged with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge {
    pub(super) now: Time,
    pub(super) lane: Lane,
    /// When a relay that defers is asked again.
    pub(super) next_cycle: Time,
}

/// A message and its recipients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    relays: usize,
    recipients: BTreeMap<i64, Open>,
    breaks: Vec<Breaks>,
    /// What went wrong last.
    pub(super) why: String,
}

impl Case {
    pub(super) fn new(relays: usize) -> Self {
        let breaks = vec![Breaks::default(); relays];
        Self { relays, recipients: BTreeMap::new(), breaks, why: String::new() }
    }

    /// A recipient is still to be delivered to.
    pub(super) fn open(&mut self, position: i64) {
        let at = || Open { at: vec![Standing::default(); self.relays], doubt: None };
        self.recipients.entry(position).or_insert_with(at);
    }

    /// A recipient has ended.
    pub(super) fn end(&mut self, position: i64) {
        self.recipients.remove(&position);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.recipients.is_empty()
    }

    /// Whether no relay has said anything of it: any relay may be asked now.
    pub(super) fn is_plain(&self) -> bool {
        let plain = |open: &Open| open.at.iter().all(|s| s.gate == Gate::Open && s.doubts == 0);
        self.recipients.values().all(plain) && self.breaks.iter().all(|b| b.count == 0)
    }

    /// The recipients that are left.
    pub(super) fn positions(&self) -> impl Iterator<Item = i64> + '_ {
        self.recipients.keys().copied()
    }

    /// When a recipient may be sent to a relay; one that is not known is without trouble.
    pub(super) fn recipient_gate(&self, position: i64, relay: usize) -> Gate {
        self.recipients.get(&position).map_or(Gate::Open, |open| open.gate(relay))
    }

    /// When something of the message may be sent to a relay.
    pub(super) fn gate(&self, relay: usize) -> Gate {
        self.recipients.values().map(|open| open.gate(relay)).min().unwrap_or(Gate::Shut)
    }

    /// When something of the message may be sent to any relay.
    pub(super) fn earliest(&self) -> Gate {
        (0..self.relays).map(|relay| self.gate(relay)).min().unwrap_or(Gate::Shut)
    }

    pub(super) fn breaks(&self, relay: usize) -> Breaks {
        self.breaks.get(relay).copied().unwrap_or_default()
    }

    /// The message ended one more session with a relay.
    pub(super) fn broke(&mut self, relay: usize, until: Time) {
        if let Some(breaks) = self.breaks.get_mut(relay) {
            *breaks = Breaks { count: breaks.count.saturating_add(1), until };
        }
    }

    /// A relay that was to be asked about a recipient was not.
    pub(super) fn not_before(&mut self, position: i64, relay: usize, at: Time) {
        if let Some(s) = self.recipients.get_mut(&position).and_then(|o| o.at.get_mut(relay)) {
            s.gate = s.gate.max(Gate::From(at));
        }
    }

    /// A relay has said this of a recipient.
    pub(super) fn judge(&mut self, position: i64, relay: usize, outcome: &Outcome, by: Judge) {
        let Some(open) = self.recipients.get_mut(&position) else { return };
        let Some(standing) = open.at.get_mut(relay) else { return };
        match outcome {
            Outcome::NotSent { .. } | Outcome::Delivered { .. } => return,
            Outcome::RejectedTemp { .. } => standing.gate = Gate::From(by.next_cycle),
            Outcome::RejectedPerm { reply, .. } => {
                standing.gate = Gate::Shut;
                reply.clone_into(&mut standing.refusal);
            }
            Outcome::InDoubt { why, .. } => {
                standing.doubts += 1;
                let until = by.now + DOUBT.1;
                if standing.doubts >= MOST_COPIES {
                    standing.gate = Gate::Shut;
                    standing.refusal = format!("in doubt after {MOST_COPIES} copies: {why}");
                    open.doubt = None;
                } else {
                    let pause = DOUBT.0 * (1 << (standing.doubts - 1));
                    standing.gate = Gate::From(by.now + pause);
                    open.doubt = match open.doubt {
                        _ if by.lane == Lane::Urgent => None,
                        Some((at, until)) if at == relay => Some((at, until)),
                        _ => Some((relay, until)),
                    };
                }
            }
        }
        outcome.text().clone_into(&mut self.why);
    }

    /// What a recipient is told to which no relay is left: every relay's refusal.
    pub(super) fn refusals(&self, position: i64, names: &[&str]) -> Option<String> {
        let open = self.recipients.get(&position)?;
        if open.at.iter().any(|s| s.gate != Gate::Shut) {
            return None;
        }
        if let [only] = open.at.as_slice() {
            return Some(only.refusal.clone());
        }
        let told = open.at.iter().zip(names).map(|(s, name)| format!("{name}: {}", s.refusal));
        Some(told.collect::<Vec<_>>().join("; "))
    }

    /// An operator wants it tried now, where it is not refused.
    pub(super) fn hurry(&mut self) {
        for open in self.recipients.values_mut() {
            open.doubt = None;
            for s in open.at.iter_mut().filter(|s| s.gate != Gate::Shut) {
                s.gate = Gate::Open;
            }
        }
        for breaks in &mut self.breaks {
            breaks.until = Time::ZERO;
        }
    }
}
