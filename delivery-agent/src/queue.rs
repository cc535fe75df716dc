//! queue - which message goes to an agent next, and what its report means
//!
//! Decides for qmgr and does nothing itself: no clock, no socket, no store. It knows a message by
//! number and a few bytes; all else is on disk. Lanes go by weight, oldest first in each (R7); a
//! relay that is down holds back what would only fail, and nothing is written for it (R2).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use worker_proto::clock::Time;

use crate::outcome::{Outcome, RelayNews};
use crate::retry::RelayClock;
use crate::store::{MessageNo, RecipientState};
use crate::wire::Lane;

mod types;

use types::{Entry, Leased, State};
pub use types::{Limits, RelayChange, Verdict};

/// Messages whose agents died this often are held (Q7).
const MOST_DEATHS: u8 = 3;
/// In doubt: the same relay is asked again after this long (S5).
const DOUBT: std::time::Duration = std::time::Duration::from_secs(120);
/// A message that no relay was asked about although none is known to be down.
const NOT_SENT: std::time::Duration = std::time::Duration::from_secs(5);
/// Shares of the lanes (R7).
const WEIGHTS: [u32; 3] = [8, 3, 1];

/// The queue in memory.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    entries: BTreeMap<MessageNo, Entry>,
    ready: [BTreeSet<MessageNo>; 3],
    waiting: BTreeSet<(Time, MessageNo)>,
    leases: HashMap<u64, Leased>,
    next_lease: u64,
    relays: Vec<(String, RelayClock)>,
    credits: [u32; 3],
    window: usize,
    seed: u64,
}

impl Queue {
    /// An empty queue before these relays, in order.
    #[must_use]
    pub fn new(limits: Limits, relays: &[String], seed: u64) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            ready: Default::default(),
            waiting: BTreeSet::new(),
            leases: HashMap::new(),
            next_lease: 0,
            relays: relays.iter().map(|name| (name.clone(), RelayClock::default())).collect(),
            credits: WEIGHTS,
            window: limits.first_agents,
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
        let state = if held { State::Held } else { State::Waiting };
        self.entries.insert(no, Entry { arrived, due, attempts, lane, deaths: 0, state });
        if !held {
            self.waiting.insert((due, no));
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
        self.entries.get(&no).filter(|e| e.state == State::Waiting).map(|e| e.due)
    }

    /// What a message is doing, in a word.
    #[must_use]
    pub fn state(&self, no: MessageNo) -> &'static str {
        match self.entries.get(&no).map(|e| e.state) {
            Some(State::Leased) => "active",
            Some(State::Ready) => "queued",
            Some(State::Waiting) => "deferred",
            Some(State::Held) => "held",
            None => "ended",
        }
    }

    /// The relays and what is known of them.
    #[must_use]
    pub fn relays(&self) -> &[(String, RelayClock)] {
        &self.relays
    }

    /// Makes what is due ready. To be called at the start of a turn.
    pub fn advance(&mut self, now: Time) {
        while let Some(&(due, no)) = self.waiting.first().filter(|(due, _)| *due <= now) {
            self.waiting.remove(&(due, no));
            if let Some(entry) = self.entries.get_mut(&no) {
                entry.state = State::Ready;
                self.ready[lane_index(entry.lane)].insert(no);
            }
        }
    }

    /// When [`Queue::advance`] has something to do, or a relay may be tried again.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let due = self.waiting.first().map(|(due, _)| *due);
        let blocked = self.ready.iter().any(|lane| !lane.is_empty()) && self.all_down();
        let probes = self.relays.iter().filter_map(|(_, clock)| clock.next_probe());
        let probe = probes.min().filter(|_| blocked);
        [due, probe].into_iter().flatten().min()
    }

    /// How many agents there is work for now.
    #[must_use]
    pub fn wanted_agents(&self, now: Time) -> usize {
        let ready: usize = self.ready.iter().map(BTreeSet::len).sum();
        let own = self.own_leases();
        let wanted = own + if self.usable(now) { ready } else { 0 };
        // A relay that is down is asked by one message, not by a crowd.
        let most = if self.all_down() { 1.max(own) } else { self.window };
        wanted.min(most.max(own))
    }

    fn own_leases(&self) -> usize {
        self.leases.values().filter(|leased| !leased.adopted).count()
    }

    /// The next message for an agent: its number, and the relays to leave alone.
    pub fn next_message(&mut self, now: Time) -> Option<(MessageNo, Vec<String>)> {
        if !self.usable(now) || self.own_leases() >= self.wanted_agents(now) {
            return None;
        }
        let lane = self.next_lane()?;
        let no = self.ready[lane].pop_first()?;
        if let Some(entry) = self.entries.get_mut(&no) {
            entry.state = State::Leased;
        }
        let avoid = self.relays.iter().filter(|(_, clock)| !clock.usable(now));
        Some((no, avoid.map(|(name, _)| name.clone()).collect()))
    }

    /// The message of [`Queue::next_message`] goes out for the recipients at these positions: the
    /// number of its lease.
    pub fn lease(&mut self, now: Time, no: MessageNo, positions: Vec<i64>) -> u64 {
        self.next_lease += 1;
        let mut probes = Vec::new();
        for (name, clock) in &mut self.relays {
            if !clock.is_up() && clock.usable(now) {
                clock.probing();
                probes.push(name.clone());
            }
        }
        self.leases.insert(self.next_lease, Leased { no, positions, probes, adopted: false });
        self.next_lease
    }

    /// A message is in the hands of an agent that another qmgr has given it to, for the recipients at
    /// these positions: the number of its lease here. None: it is not there, is held, or is with
    /// another agent by now.
    pub fn adopt(&mut self, no: MessageNo, positions: Vec<i64>) -> Option<u64> {
        let waits = |e: &Entry| matches!(e.state, State::Ready | State::Waiting);
        if !self.entries.get(&no).is_some_and(waits) {
            return None;
        }
        self.take_out(no);
        if let Some(entry) = self.entries.get_mut(&no) {
            entry.state = State::Leased;
        }
        self.next_lease += 1;
        let leased = Leased { no, positions, probes: Vec::new(), adopted: true };
        self.leases.insert(self.next_lease, leased);
        Some(self.next_lease)
    }

    /// An adopted lease ends, and the message waits as before: for [`Queue::adopt`] by another.
    pub fn hand_over(&mut self, lease: u64) {
        if let Some(Leased { no, .. }) = self.leases.remove(&lease)
            && let Some(entry) = self.entries.get(&no)
        {
            let (attempts, due) = (entry.attempts, entry.due);
            self.wait(no, attempts, due);
        }
    }

    /// The message of [`Queue::next_message`] cannot be read.
    pub fn hold(&mut self, no: MessageNo) {
        self.take_out(no);
        if let Some(entry) = self.entries.get_mut(&no) {
            entry.state = State::Held;
        }
    }

    /// A lease's report. None when the lease is not known: it was ended before.
    pub fn report(
        &mut self,
        now: Time,
        lease: u64,
        outcomes: &[(usize, Outcome)],
    ) -> Option<Verdict> {
        let leased = self.leases.remove(&lease)?;
        self.end_probes(&leased);
        let entry = *self.entries.get(&leased.no)?;
        let expired = now.since(entry.arrived) >= self.limits.lifetime;
        let mut verdict =
            Verdict { no: leased.no, marks: Vec::new(), deferred: None, outcomes: Vec::new() };
        // What a relay has put off, what may have arrived, and what no relay was asked about.
        let (mut put_off, mut in_doubt, mut not_sent) = (None, None, false);
        let tries = entry.attempts + 1;
        for (at, position) in leased.positions.iter().copied().enumerate() {
            let told = outcomes.iter().find(|(n, _)| *n == at).map(|(_, outcome)| outcome.clone());
            let outcome = told
                .unwrap_or_else(|| Outcome::NotSent { why: "the agent did not tell".to_owned() });
            let reply = outcome.text().to_owned();
            match &outcome {
                Outcome::Delivered { .. } => {
                    self.window = (self.window + 1).min(self.limits.agents);
                    verdict.marks.push((position, RecipientState::Delivered, reply));
                }
                Outcome::RejectedPerm { .. } => {
                    verdict.marks.push((position, RecipientState::Failed, reply));
                }
                Outcome::RejectedTemp { .. } | Outcome::InDoubt { .. } if expired => {
                    let reply = format!("expired after {tries} attempts: {reply}");
                    verdict.marks.push((position, RecipientState::Failed, reply));
                }
                Outcome::RejectedTemp { .. } => put_off = Some(reply),
                Outcome::InDoubt { .. } => in_doubt = Some(reply),
                Outcome::NotSent { .. } => not_sent = true,
            }
            verdict.outcomes.push((position, outcome));
        }
        let pause = put_off.as_ref().map(|_| {
            self.seed = self.seed.wrapping_add(1);
            self.limits.message.pause(tries, self.seed)
        });
        // One clock for the message: what is in doubt is not repeated early for another's sake.
        let pause = pause.max(in_doubt.as_ref().map(|_| DOUBT));
        match (pause, put_off.or(in_doubt)) {
            (Some(pause), Some(why)) => {
                let due = now + pause;
                self.wait(leased.no, tries, due);
                verdict.deferred = Some((tries, due, why, false));
            }
            // No attempt, and nothing is written (R2). With every relay down the gate holds it back;
            // otherwise it waits a little, lest it goes round and round.
            _ if not_sent => {
                let due = if self.all_down() { now } else { now + NOT_SENT };
                self.wait(leased.no, entry.attempts, due);
            }
            _ => {
                self.entries.remove(&leased.no);
            }
        }
        Some(verdict)
    }

    /// The agent of a lease has ended without a report. The message is tried again, or held when it
    /// has outlived too many agents (Q7). None when the lease is not known.
    pub fn agent_died(&mut self, now: Time, lease: u64) -> Option<Verdict> {
        let leased = self.leases.remove(&lease)?;
        self.end_probes(&leased);
        let entry = self.entries.get_mut(&leased.no)?;
        entry.deaths += 1;
        let (deaths, attempts) = (entry.deaths, entry.attempts);
        let mut verdict =
            Verdict { no: leased.no, marks: Vec::new(), deferred: None, outcomes: Vec::new() };
        if deaths >= MOST_DEATHS {
            entry.state = State::Held;
            let why = format!("{deaths} delivery agents died on it");
            verdict.deferred = Some((attempts, now, why, true));
        } else {
            self.wait(leased.no, attempts, now);
        }
        Some(verdict)
    }

    /// What an agent has learned about a relay.
    pub fn news(&mut self, now: Time, news: &RelayNews) -> Option<RelayChange> {
        self.seed = self.seed.wrapping_add(1);
        let (seed, was_down) = (self.seed, self.all_down());
        let (name, clock) = self.relays.iter_mut().find(|(name, _)| *name == news.relay)?;
        let name = name.clone();
        if !news.up {
            let fresh = clock.failed(now, &news.reply, seed);
            return fresh.then(|| RelayChange::Down(name, news.reply.clone()));
        }
        if !clock.succeeded(&news.reply) {
            return None;
        }
        if was_down {
            // It has just come back: no crowd at its door (R1).
            self.window = 1;
        }
        Some(RelayChange::Up(name))
    }

    /// An operator wants a message, or every message, tried now.
    pub fn flush(&mut self, now: Time, only: Option<MessageNo>) {
        for (_, clock) in &mut self.relays {
            clock.probe_now(now);
        }
        let waiting: Vec<_> =
            self.waiting.iter().filter(|(_, no)| only.is_none_or(|o| o == *no)).copied().collect();
        for (due, no) in waiting {
            self.waiting.remove(&(due, no));
            self.waiting.insert((now, no));
            if let Some(entry) = self.entries.get_mut(&no) {
                entry.due = now;
            }
        }
    }

    /// An operator releases a message that was held.
    pub fn release(&mut self, now: Time, no: MessageNo) {
        if let Some(entry) = self.entries.get_mut(&no).filter(|e| e.state == State::Held) {
            entry.deaths = 0;
            let attempts = entry.attempts;
            self.wait(no, attempts, now);
        }
    }

    /// An operator deletes a message. False: it is on its way, and cannot be had back.
    pub fn remove(&mut self, no: MessageNo) -> bool {
        if self.entries.get(&no).is_some_and(|e| e.state == State::Leased) {
            return false;
        }
        self.take_out(no);
        self.entries.remove(&no);
        true
    }

    /// Forgets every message that no agent has. They are in a damaged store, and come back as they are
    /// read from it.
    pub fn forget_waiting(&mut self) {
        self.entries.retain(|_, entry| entry.state == State::Leased);
        self.waiting.clear();
        self.ready = Default::default();
    }

    /// How often a relay has put a message off.
    #[must_use]
    pub fn attempts(&self, no: MessageNo) -> u32 {
        self.entries.get(&no).map_or(0, |e| e.attempts)
    }

    fn wait(&mut self, no: MessageNo, attempts: u32, due: Time) {
        if let Some(entry) = self.entries.get_mut(&no) {
            (entry.attempts, entry.due, entry.state) = (attempts, due, State::Waiting);
            self.waiting.insert((due, no));
        }
    }

    fn take_out(&mut self, no: MessageNo) {
        if let Some(entry) = self.entries.get(&no) {
            self.waiting.remove(&(entry.due, no));
            self.ready[lane_index(entry.lane)].remove(&no);
        }
    }

    fn end_probes(&mut self, leased: &Leased) {
        for (name, clock) in &mut self.relays {
            if leased.probes.contains(name) {
                clock.probe_lost();
            }
        }
    }

    fn all_down(&self) -> bool {
        !self.relays.is_empty() && self.relays.iter().all(|(_, clock)| !clock.is_up())
    }

    fn usable(&self, now: Time) -> bool {
        self.relays.iter().any(|(_, clock)| clock.usable(now))
    }

    /// The lane whose turn it is: each has so many turns a round, and one without messages gives its
    /// turns away.
    fn next_lane(&mut self) -> Option<usize> {
        for _ in 0..2 {
            let waiting = |lane: &usize| !self.ready[*lane].is_empty();
            if let Some(lane) = (0..3).filter(waiting).find(|&lane| self.credits[lane] > 0) {
                self.credits[lane] -= 1;
                return Some(lane);
            }
            self.credits = WEIGHTS;
        }
        None
    }
}

const fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Normal => 1,
        Lane::Bulk => 2,
    }
}

#[cfg(test)]
mod tests;
