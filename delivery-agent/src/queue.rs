//! queue - which message goes to an agent next, and what its report means
//!
//! Decides for qmgr and does nothing itself: no clock, no socket, no store. It knows a message by
//! number and a few bytes; all else is on disk. Lanes go by weight, oldest first in each (R7); a
//! relay that is down holds back what would only fail, and nothing is written for it (R2).
//!
//! A message without trouble is for every relay: it is `fresh`, and goes to the first relay that can be
//! used. One with a [`case`] has a place at each relay, by what that relay has said of it, so that it
//! goes wherever it may as soon as it may, and nothing waits for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use worker_proto::clock::Time;

use crate::retry::RelayClock;
use crate::store::MessageNo;
use crate::wire::Lane;

mod case;
mod lanes;
mod relays;
mod reports;
mod types;

use case::Case;
use lanes::{Lanes, Turns};
use relays::Relay;
use types::{Entry, Leased, State};
pub use types::{Limits, Plan, RelayChange, Stall, Task, Verdict};

/// The queue in memory.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    entries: BTreeMap<MessageNo, Entry>,
    fresh: Lanes,
    later: BTreeSet<(Time, MessageNo)>,
    cases: HashMap<MessageNo, Case>,
    /// When messages with a case have reached the end of their lifetime, and those that have.
    expiring: BTreeSet<(Time, MessageNo)>,
    overdue: BTreeSet<MessageNo>,
    leases: HashMap<u64, Leased>,
    next_lease: u64,
    relays: Vec<Relay>,
    turns: Turns,
    seed: u64,
}

impl Queue {
    /// An empty queue before these relays, in order.
    #[must_use]
    pub fn new(limits: Limits, relays: &[String], seed: u64) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            fresh: Lanes::default(),
            later: BTreeSet::new(),
            cases: HashMap::new(),
            expiring: BTreeSet::new(),
            overdue: BTreeSet::new(),
            leases: HashMap::new(),
            next_lease: 0,
            relays: relays.iter().map(|name| Relay::new(name, limits.first_agents)).collect(),
            turns: Turns::new(),
            seed,
        }
    }

    /// Takes in a message that is on disk.
    pub fn add(
        &mut self,
        no: MessageNo,
        lane: Lane,
        arrived: Time,
        due: Time,
        attempts: u32,
        held: bool,
    ) {
        let state = if held { State::Held } else { State::Later };
        self.entries.insert(no, Entry { arrived, due, attempts, lane, deaths: 0, state });
        if !held {
            self.later.insert((due, no));
        }
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Messages in the hands of agents.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.leases.len()
    }

    /// When a message is tried again; None when it is due, on its way, or held.
    #[must_use]
    pub fn due(&self, no: MessageNo) -> Option<Time> {
        let entry = self.entries.get(&no)?;
        match entry.state {
            State::Later => Some(entry.due),
            State::Case if self.relays.iter().all(|r| !r.ready.contains(entry.lane, no)) => {
                let case = self.cases.get(&no)?;
                let at = |index: usize| match case.gate(index) {
                    case::Gate::From(at) => Some(at.max(case.breaks(index).until)),
                    case::Gate::Open => Some(case.breaks(index).until),
                    case::Gate::Shut => None,
                };
                (0..self.relays.len()).filter_map(at).min()
            }
            State::Fresh | State::Case | State::Leased | State::Held => None,
        }
    }

    /// What a message is doing, in a word.
    #[must_use]
    pub fn state(&self, no: MessageNo) -> &'static str {
        let Some(entry) = self.entries.get(&no) else { return "ended" };
        let ready = |r: &Relay| r.clock.is_up() && r.ready.contains(entry.lane, no);
        match entry.state {
            State::Leased => "active",
            State::Fresh => "queued",
            State::Case if self.relays.iter().any(ready) => "queued",
            State::Later | State::Case => "deferred",
            State::Held => "held",
        }
    }

    /// The relays, what is known of them, and who waits for one that is slow.
    pub fn relays(&self) -> impl Iterator<Item = (&str, &RelayClock, Option<&Stall>)> {
        let relays = self.relays.iter().enumerate();
        relays.map(|(index, relay)| (relay.name.as_str(), &relay.clock, self.slow(index)))
    }

    /// Makes what is due ready. To be called at the start of a turn.
    pub fn advance(&mut self, now: Time) {
        while let Some(&(due, no)) = self.later.first().filter(|(due, _)| *due <= now) {
            self.later.remove(&(due, no));
            if let Some(entry) = self.entries.get_mut(&no) {
                entry.state = State::Fresh;
                self.fresh.insert(entry.lane, no);
            }
        }
        while let Some(&(end, no)) = self.expiring.first().filter(|(end, _)| *end <= now) {
            self.expiring.remove(&(end, no));
            self.overdue.insert(no);
        }
        self.advance_relays(now);
    }

    /// When [`Queue::advance`] or [`Queue::next_task`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let due = self.later.first().map(|(due, _)| *due);
        let end = self.expiring.first().map(|(end, _)| *end);
        let relays = (0..self.relays.len()).filter_map(|index| self.relay_deadline(index));
        [due, end].into_iter().flatten().chain(relays).min()
    }

    /// Whether there is something for an agent to do now.
    #[must_use]
    pub fn has_task(&self, now: Time) -> bool {
        self.relays.iter().any(|r| r.clock.wants_connection(now)) || self.choose(now).is_some()
    }

    /// The next thing for an agent to do. A message that is to be sent is given to
    /// [`Queue::lease`], [`Queue::put_back`] or [`Queue::hold`] then.
    pub fn next_task(&mut self, now: Time) -> Option<Task> {
        if let Some(relay) = self.relays.iter_mut().find(|r| r.clock.wants_connection(now)) {
            relay.clock.probing();
            return Some(Task::Connect(relay.name.clone()));
        }
        let choice = self.choose(now)?;
        self.turns.spend(choice.lane);
        self.displace(choice.no);
        if let Some(entry) = self.entries.get_mut(&choice.no) {
            entry.state = State::Leased;
        }
        Some(Task::Send(choice.no, choice.relay))
    }

    /// A message of [`Queue::next_task`] goes out, for those of the recipients at these positions
    /// that may be sent now.
    pub fn lease(&mut self, now: Time, no: MessageNo, first: usize, positions: &[i64]) -> Plan {
        self.next_lease += 1;
        let lease = self.next_lease;
        let case = self.cases.get(&no);
        // One whose sessions it has ended is not asked on the way, before its own time there.
        let mut route = self.route(now, first);
        let rests = |relay: usize| case.is_some_and(|case| case.breaks(relay).until > now);
        route.retain(|&relay| relay == first || !rests(relay));
        let open = |position: i64, relay: usize| {
            case.is_none_or(|case| case.recipient_gate(position, relay).is_open(now))
        };
        let may = |position: &i64| route.iter().any(|&relay| open(*position, relay));
        let positions: Vec<_> = positions.iter().copied().filter(may).collect();
        let name = |relay: usize| self.relays[relay].name.clone();
        let mut except = Vec::new();
        for (at, &position) in positions.iter().enumerate() {
            let shut = route.iter().filter(|&&relay| !open(position, relay));
            except.extend(shut.map(|&relay| (at, name(relay))));
        }
        let relays = route.iter().map(|&relay| name(relay)).collect();
        let clock = &mut self.relays[first].clock;
        // One that has ended a session there before shows nothing, so the others do not wait for it.
        let known = case.is_some_and(|case| case.breaks(first).count > 0);
        let probe = (!(clock.is_up() || known && clock.in_question())).then_some(first);
        if probe.is_some() {
            clock.probing();
        }
        let leased = Leased {
            no,
            positions: positions.clone(),
            relays: route,
            probe,
            broke: Vec::new(),
            stalled: None,
            adopted: false,
        };
        self.leases.insert(lease, leased);
        Plan { lease, positions, relays, except }
    }

    /// A message is in the hands of an agent that another qmgr has given it to, for the recipients at
    /// these positions, and not for others that are left: the number of its lease here. None: it is
    /// not there, is held, or is with another agent by now.
    pub fn adopt(&mut self, no: MessageNo, positions: Vec<i64>, others: &[i64]) -> Option<u64> {
        let waits = |e: &Entry| matches!(e.state, State::Fresh | State::Later | State::Case);
        if !self.entries.get(&no).is_some_and(waits) {
            return None;
        }
        self.displace(no);
        if let Some(entry) = self.entries.get_mut(&no) {
            entry.state = State::Leased;
        }
        if !others.is_empty() {
            let relays = self.relays.len();
            let case = self.cases.entry(no).or_insert_with(|| Case::new(relays));
            others.iter().for_each(|&position| case.open(position));
        }
        self.next_lease += 1;
        let leased = Leased {
            no,
            positions,
            relays: Vec::new(),
            probe: None,
            broke: Vec::new(),
            stalled: None,
            adopted: true,
        };
        self.leases.insert(self.next_lease, leased);
        Some(self.next_lease)
    }

    /// An adopted lease ends, and the message waits as before: for [`Queue::adopt`] by another.
    pub fn hand_over(&mut self, lease: u64) {
        if let Some(Leased { no, .. }) = self.leases.remove(&lease)
            && let Some(entry) = self.entries.get(&no)
        {
            self.wait(no, entry.due);
        }
    }

    /// A message of [`Queue::next_task`] cannot be read now: it waits as before.
    pub fn put_back(&mut self, no: MessageNo) {
        if let Some(entry) = self.entries.get(&no) {
            self.wait(no, entry.due);
        }
    }

    /// The message cannot be read, or an operator wants it held.
    pub fn hold(&mut self, no: MessageNo) {
        self.displace(no);
        self.close_case(no);
        if let Some(entry) = self.entries.get_mut(&no) {
            entry.state = State::Held;
        }
    }

    /// An operator wants a message, or every message, tried now.
    pub fn flush(&mut self, now: Time, only: Option<MessageNo>) {
        for relay in &mut self.relays {
            relay.clock.probe_now(now);
        }
        let wanted = |no: &MessageNo| only.is_none_or(|only| only == *no);
        let later: Vec<_> = self.later.iter().copied().filter(|(_, no)| wanted(no)).collect();
        for (_, no) in later {
            self.wait(no, now);
        }
        for no in self.cases.keys().copied().filter(wanted).collect::<Vec<_>>() {
            if self.entries.get(&no).is_some_and(|e| e.state == State::Case) {
                self.displace(no);
                if let Some(case) = self.cases.get_mut(&no) {
                    case.hurry();
                }
                self.place(now, no);
            }
        }
    }

    /// An operator releases a message that was held.
    pub fn release(&mut self, now: Time, no: MessageNo) {
        if let Some(entry) = self.entries.get_mut(&no).filter(|e| e.state == State::Held) {
            entry.deaths = 0;
            self.wait(no, now);
        }
    }

    /// An operator deletes a message. False: it is on its way, and cannot be had back.
    pub fn remove(&mut self, no: MessageNo) -> bool {
        if self.entries.get(&no).is_some_and(|e| e.state == State::Leased) {
            return false;
        }
        self.forget(no);
        true
    }

    /// Forgets every message that no agent has. They are in a damaged store, and come back as they are
    /// read from it.
    pub fn forget_waiting(&mut self) {
        let waits =
            |(no, entry): (&MessageNo, &Entry)| (entry.state != State::Leased).then_some(*no);
        for no in self.entries.iter().filter_map(waits).collect::<Vec<_>>() {
            self.forget(no);
        }
    }

    /// Nobody needs to know of the message any more.
    fn forget(&mut self, no: MessageNo) {
        self.displace(no);
        self.close_case(no);
        self.entries.remove(&no);
    }

    fn close_case(&mut self, no: MessageNo) {
        self.cases.remove(&no);
        self.overdue.remove(&no);
        if let Some(entry) = self.entries.get(&no) {
            self.expiring.remove(&(entry.arrived + self.limits.lifetime, no));
        }
    }

    /// The message is tried again at this time: where its case says, or anywhere.
    fn wait(&mut self, no: MessageNo, due: Time) {
        self.displace(no);
        if self.cases.contains_key(&no) {
            return self.place(due, no);
        }
        if let Some(entry) = self.entries.get_mut(&no) {
            (entry.due, entry.state) = (due, State::Later);
            self.later.insert((due, no));
        }
    }
}

#[cfg(test)]
mod tests;
