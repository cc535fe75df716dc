//! relays - what waits for each relay, and which relay comes first

use std::collections::BTreeSet;

use worker_proto::clock::Time;

use super::case::Gate;
use super::lanes::{LANES, Lanes};
use super::types::{Leased, Stall, State};
use super::{Queue, RelayChange};
use crate::outcome::{Finding, RelayNews};
use crate::retry::{RelayClock, spread};
use crate::store::MessageNo;
use crate::wire::{Lane, Progress};

/// A relay, and the messages with a case that are for it.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) name: String,
    pub(super) clock: RelayClock,
    /// Agents at a time.
    pub(super) window: usize,
    /// Where the window ends: sessions beyond that failed while others worked. It grows again with
    /// every so many deliveries.
    pub(super) most: usize,
    pub(super) delivered: u32,
    /// Messages that may be sent there now.
    pub(super) ready: Lanes,
    /// Messages that may be sent there later.
    pub(super) waiting: BTreeSet<(Time, MessageNo)>,
    /// Messages that have ended sessions there, and their own time. Before it they are sent only when
    /// the relay is down and no other message is there to find out about it.
    pub(super) broke: BTreeSet<(Time, MessageNo)>,
}

impl Relay {
    pub(super) fn new(name: &str, window: usize) -> Self {
        Self {
            name: name.to_owned(),
            clock: RelayClock::default(),
            window,
            most: usize::MAX,
            delivered: 0,
            ready: Lanes::default(),
            waiting: BTreeSet::new(),
            broke: BTreeSet::new(),
        }
    }
}

/// The next message, and where it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) no: MessageNo,
    pub(super) lane: Lane,
    pub(super) relay: usize,
}

impl Queue {
    /// What an agent has learned about a relay, with a lease or without.
    pub fn news(&mut self, now: Time, from: Option<u64>, news: &RelayNews) -> Option<RelayChange> {
        self.seed = self.seed.wrapping_add(1);
        let seed = self.seed;
        let index = self.relays.iter().position(|relay| relay.name == news.relay)?;
        let by_probe = self.is_from_probe(index, from);
        if !matches!(news.finding, Finding::Works | Finding::Answers)
            && let Some(leased) = from.and_then(|lease| self.leases.get_mut(&lease))
        {
            // It goes on to the next one.
            leased.relays.retain(|relay| *relay != index);
        }
        if news.finding == Finding::Broke && self.has_broken(index, from) {
            // It does so each time, and others go through: its own clock is enough (R6).
            return None;
        }
        let others = self.busy(index);
        let relay = self.relays.get_mut(index)?;
        let (clock, reply) = (&mut relay.clock, news.reply.as_str());
        let fresh = match news.finding {
            Finding::Works => {
                let others = self.leases.values_mut().filter(|l| l.probe == Some(index));
                others.for_each(|leased| leased.probe = None);
                if !clock.works(reply) {
                    return None;
                }
                // It has just come back: no crowd at its door (R1).
                relay.window = 1;
                return Some(RelayChange::Up(relay.name.clone()));
            }
            Finding::Answers => {
                clock.answers(now);
                return None;
            }
            Finding::Unreachable => clock.unreachable(now, reply, seed, by_probe),
            Finding::Fails => {
                if clock.is_up() && others > 0 {
                    (relay.most, relay.delivered) = (others, 0);
                }
                clock.fails(now, reply, seed, by_probe)
            }
            Finding::Broke => clock.broke(now, reply, seed, by_probe),
        };
        fresh.then(|| RelayChange::Down(relay.name.clone(), news.reply.clone()))
    }

    /// Whether news come from the message that was to find out about the relay, or from a bare
    /// connection; that one has done its work then.
    fn is_from_probe(&mut self, relay: usize, from: Option<u64>) -> bool {
        let Some(lease) = from else { return true };
        let Some(leased) = self.leases.get_mut(&lease) else { return false };
        leased.probe.take_if(|probe| *probe == relay).is_some()
    }

    /// Notes that a lease has broken a session with a relay; true when that is the message's fault
    /// and not the relay's.
    fn has_broken(&mut self, relay: usize, lease: Option<u64>) -> bool {
        let leased = lease.and_then(|lease| self.leases.get_mut(&lease));
        let Some(leased) = leased else { return false };
        leased.broke.push(relay);
        let known = self.cases.get(&leased.no).is_some_and(|case| case.breaks(relay).count > 0);
        known && self.relays[relay].clock.down_since().is_none()
    }

    /// A lease waits long for a relay, or no more.
    pub fn progress(&mut self, now: Time, progress: &Progress) -> Option<RelayChange> {
        let relay = self.relays.iter().position(|relay| relay.name == progress.relay)?;
        let was_slow = self.slow(relay).is_some();
        let leased = self.leases.get_mut(&progress.lease)?;
        let stage = progress.waits_for.clone();
        leased.stalled = stage.map(|stage| Stall { relay, stage, since: now });
        if let Some(at) = leased.relays.iter().position(|r| *r == relay) {
            leased.relays.drain(..at);
        }
        let stage = leased.stalled.as_ref().filter(|_| !was_slow)?.stage.clone();
        Some(RelayChange::Slow(progress.relay.clone(), stage))
    }

    /// A bare connection came to nothing: its agent has ended.
    pub fn probe_lost(&mut self, name: &str) {
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.name == name) {
            relay.clock.probe_lost();
        }
    }

    /// The lease that waits longest for a relay, if one does.
    pub(super) fn slow(&self, relay: usize) -> Option<&Stall> {
        let stalls = self.leases.values().filter_map(|leased| leased.stalled.as_ref());
        stalls.filter(|stall| stall.relay == relay).min_by_key(|stall| stall.since)
    }

    /// The relays that may be asked, in order: those that are slow come last.
    fn order(&self, now: Time) -> Vec<usize> {
        let all = || (0..self.relays.len()).filter(|&r| self.relays[r].clock.usable(now));
        let slow = |&r: &usize| self.slow(r).is_some();
        all().filter(|r| !slow(r)).chain(all().filter(slow)).collect()
    }

    /// The relays that a message may be sent to, the chosen one first. One that is being tried out, or
    /// is slow, is not for messages that come from elsewhere.
    pub(super) fn route(&self, now: Time, first: usize) -> Vec<usize> {
        let works = |&r: &usize| self.relays[r].clock.is_up() && self.slow(r).is_none();
        let others = self.order(now).into_iter().filter(|&r| r != first).filter(works);
        std::iter::once(first).chain(others).collect()
    }

    /// The next message and its relay. It looks at the relays in order; a message without a case goes
    /// to the first one that is usable, or if it does not try that one out to the first one that works,
    /// others where they may.
    pub(super) fn choose(&self, now: Time) -> Option<Choice> {
        let order = self.order(now);
        let works = |&r: &usize| self.relays[r].clock.is_up() && self.slow(r).is_none();
        let (first, working) = (order.first().copied(), order.iter().copied().find(works));
        order.into_iter().find_map(|r| {
            let fresh = first == Some(r) || working == Some(r);
            self.choose_for(now, r, fresh, working.is_some())
        })
    }

    fn choose_for(&self, now: Time, index: usize, fresh: bool, works: bool) -> Option<Choice> {
        let relay = &self.relays[index];
        let first = |lane: Lane| {
            let fresh = self.fresh.first(lane).filter(|_| fresh);
            [fresh, relay.ready.first(lane)].into_iter().flatten().min()
        };
        if relay.clock.is_up() {
            let lane = self.turns.next(|lane| first(lane).is_some())?;
            let (busy, mute) = (self.busy(index), self.mute(index));
            // Half of what it may have at a time waits for an answer: find out whether it answers
            // for one more, so that those do not block all others (R6).
            let crowded = !works && mute > 0 && 2 * mute >= relay.window;
            let no = if crowded {
                let number = spread(self.seed);
                let fresh = self.fresh.any(lane, number).filter(|_| fresh);
                fresh.or_else(|| relay.ready.any(lane, number))
            } else {
                first(lane)
            };
            let may = match crowded {
                true => busy <= mute && self.leases.len() < self.limits.agents,
                false => busy < relay.window,
            };
            return no.filter(|_| may).map(|no| Choice { no, lane, relay: index });
        }
        self.probe_for(index, fresh, works).or_else(|| {
            // The same message would show nothing new.
            let no = relay.broke.first().filter(|_| !relay.clock.in_question());
            let no = no.map(|(_, no)| *no)?;
            let lane = self.entries.get(&no)?.lane;
            let open = self.cases.get(&no)?.gate(index).is_open(now);
            open.then_some(Choice { no, lane, relay: index })
        })
    }

    /// The message that finds out about a relay. Not the oldest: the oldest ones may be many of a kind
    /// that the relay cannot bear (R6). While another relay works not an urgent one that is for that
    /// one too: it might have to wait (R7).
    fn probe_for(&self, index: usize, fresh: bool, works: bool) -> Option<Choice> {
        let number = spread(self.seed);
        let mut lanes = LANES;
        if works {
            lanes.reverse();
        } else if number >> 62 == 0 {
            lanes.rotate_left(1);
        }
        let relay = &self.relays[index];
        lanes.into_iter().find_map(|lane| {
            let spared = works && lane == Lane::Urgent;
            let waits_for_other = |no: MessageNo| {
                self.relays.iter().any(|r| r.clock.is_up() && r.ready.contains(lane, no))
            };
            let fresh = self.fresh.any(lane, number).filter(|_| fresh && !spared);
            let ready =
                relay.ready.any(lane, number).filter(|&no| !(spared && waits_for_other(no)));
            let no = if number >> 61 & 1 == 0 { fresh.or(ready) } else { ready.or(fresh) };
            no.map(|no| Choice { no, lane, relay: index })
        })
    }

    /// Agents that wait long for a relay.
    fn mute(&self, relay: usize) -> usize {
        let waits = |leased: &&Leased| leased.stalled.as_ref().is_some_and(|s| s.relay == relay);
        self.leases.values().filter(waits).count()
    }

    /// Agents that are at a relay, as far as is known.
    fn busy(&self, relay: usize) -> usize {
        let at = |leased: &&Leased| leased.relays.first() == Some(&relay) && !leased.adopted;
        self.leases.values().filter(at).count()
    }

    /// When something is to be done about a relay by itself.
    pub(super) fn relay_deadline(&self, index: usize) -> Option<Time> {
        let relay = &self.relays[index];
        let waiting = relay.waiting.first().map(|(at, _)| *at);
        let down = relay.clock.down_since().is_some();
        let broke = relay.broke.first().filter(|_| !down).map(|(at, _)| *at);
        let probe = relay.clock.next_probe().filter(|_| {
            let rank = |r: usize| (self.slow(r).is_some(), r);
            let mut up = (0..self.relays.len()).filter(|&r| self.relays[r].clock.is_up());
            let works = up.clone().any(|r| self.slow(r).is_none());
            let fresh = up.all(|r| rank(index) < rank(r));
            relay.clock.health() == crate::retry::Health::Unreachable
                || self.probe_for(index, fresh, works).is_some()
                || down && !relay.broke.is_empty()
        });
        [waiting, broke, probe].into_iter().flatten().min()
    }

    /// Puts a message with a case in its places.
    pub(super) fn place(&mut self, now: Time, no: MessageNo) {
        let (Some(entry), Some(case)) = (self.entries.get_mut(&no), self.cases.get(&no)) else {
            return;
        };
        entry.state = State::Case;
        for (index, relay) in self.relays.iter_mut().enumerate() {
            let until = case.breaks(index).until;
            match case.gate(index) {
                Gate::Shut => {}
                Gate::From(at) if at > now => drop(relay.waiting.insert((at, no))),
                _ if until > now => drop(relay.broke.insert((until, no))),
                _ => relay.ready.insert(entry.lane, no),
            }
        }
    }

    /// Takes a message out of all its places.
    pub(super) fn displace(&mut self, no: MessageNo) {
        let Some(entry) = self.entries.get(&no) else { return };
        self.later.remove(&(entry.due, no));
        self.fresh.remove(entry.lane, no);
        let Some(case) = self.cases.get(&no) else { return };
        for (index, relay) in self.relays.iter_mut().enumerate() {
            if let Gate::From(at) = case.gate(index) {
                relay.waiting.remove(&(at, no));
            }
            relay.broke.remove(&(case.breaks(index).until, no));
            relay.ready.remove(entry.lane, no);
        }
    }

    /// Moves what is due to where it can be sent from.
    pub(super) fn advance_relays(&mut self, now: Time) {
        let mut due = BTreeSet::new();
        for relay in &self.relays {
            let waited = relay.waiting.iter().take_while(|(at, _)| *at <= now);
            let down = relay.clock.down_since().is_some();
            let broke = relay.broke.iter().take_while(|(at, _)| !down && *at <= now);
            due.extend(waited.chain(broke).map(|(_, no)| *no));
        }
        for no in due {
            self.displace(no);
            self.place(now, no);
        }
    }

    pub(super) fn end_probe(&mut self, leased: &Leased) {
        if let Some(relay) = leased.probe.and_then(|index| self.relays.get_mut(index)) {
            relay.clock.probe_lost();
        }
    }
}
