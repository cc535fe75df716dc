//! The policy against relays that fail in every way, in simulated time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What a relay does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Takes,
    /// It accepts no connection.
    Refuses,
    /// It closes before anything was sent.
    Hangs,
    /// It closes in the middle of the message.
    Breaks,
    Defers,
    Bounces,
    /// It takes the message and says nothing.
    Doubts,
    /// It says nothing for this many seconds, and then takes the message or ends the session.
    Stalls(u64, bool),
}

/// A relay: what it does with messages in general and with one of them, until it is mended.
#[derive(Debug, Clone, Copy)]
struct Peer {
    usual: Act,
    odd: (i64, Act),
    mended: u64,
    /// Even then it refuses this message.
    never: i64,
}

impl Peer {
    fn act(&self, now: Time, no: MessageNo) -> Act {
        let about_all = |act| matches!(act, Act::Refuses | Act::Hangs);
        match self {
            Self { never, .. } if *never == no.0 => Act::Bounces,
            Self { mended, .. } if now >= at(*mended) => Act::Takes,
            Self { usual, .. } if about_all(*usual) => *usual,
            Self { odd, .. } if odd.0 == no.0 && !about_all(odd.1) => odd.1,
            Self { usual, .. } => *usual,
        }
    }
}

/// A lease under way.
#[derive(Debug)]
struct Flight {
    no: MessageNo,
    plan: Plan,
    /// The place in the plan, when it is through there, and whether it was told to be slow.
    at: usize,
    through: Time,
    told: bool,
    act: Act,
    outcomes: Vec<(usize, Outcome)>,
}

struct World {
    peers: Vec<Peer>,
    names: Vec<String>,
    queue: Queue,
    now: Time,
    flights: Vec<Flight>,
    open: BTreeMap<i64, Time>,
    delivered: BTreeSet<i64>,
    failed: BTreeMap<i64, &'static str>,
    /// Which relays have refused a message for good, and how many copies may have arrived.
    refused: BTreeSet<(i64, usize)>,
    copies: BTreeMap<(i64, usize), usize>,
    /// When connections were made to relays that are not up.
    connections: Vec<(Time, usize)>,
    agents: usize,
}

const MESSAGES: i64 = 8;
const STALL: Duration = Duration::from_secs(10);

impl World {
    fn new(peers: &[Peer], agents: usize) -> Self {
        let names: Vec<_> = (0..peers.len()).map(|n| format!("r{n}")).collect();
        let limits = Limits { agents, first_agents: agents, ..limits() };
        let mut world = Self {
            peers: peers.to_vec(),
            queue: Queue::new(limits, &names, 7),
            names,
            now: at(0),
            flights: Vec::new(),
            open: (1..=MESSAGES).map(|no| (no, at(0))).collect(),
            delivered: BTreeSet::new(),
            failed: BTreeMap::new(),
            refused: BTreeSet::new(),
            copies: BTreeMap::new(),
            connections: Vec::new(),
            agents,
        };
        world.fill();
        world
    }

    fn fill(&mut self) {
        for (&no, &due) in &self.open {
            let lane = [Lane::Urgent, Lane::Normal, Lane::Bulk][usize::try_from(no % 3).unwrap()];
            self.queue.add(MessageNo(no), lane, at(0), due, 0, false);
        }
    }

    /// qmgr and all agents end and begin anew; what is under way is lost.
    fn restart(&mut self) {
        let limits = Limits { agents: self.agents, first_agents: self.agents, ..limits() };
        self.queue = Queue::new(limits, &self.names, 9);
        self.flights.clear();
        // What is known of copies was forgotten as well.
        self.copies.clear();
        self.refused.clear();
        self.fill();
    }

    /// Everything that can be done now, and then the invariants.
    fn turn(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..1000 {
            let expired = self.queue.expire(self.now);
            expired.into_iter().try_for_each(|verdict| self.judge(&verdict))?;
            let Some(task) = self.queue.next_task(self.now) else {
                prop_assert!(!self.queue.has_task(self.now));
                let next = self.queue.deadline();
                prop_assert!(next.is_none_or(|next| next > self.now), "{next:?} {}", self.now);
                return self.check();
            };
            match task {
                Task::Connect(name) => self.connect(&name)?,
                Task::Send(no, first) => {
                    let plan = self.queue.lease(self.now, no, first, &[0]);
                    prop_assert_eq!(&plan.positions, &[0]);
                    let act = Act::Takes;
                    let (told, outcomes) = (false, Vec::new());
                    let flight = Flight { no, plan, at: 0, through: self.now, told, act, outcomes };
                    self.fly(flight)?;
                }
            }
        }
        prop_assert!(false, "endless loop at {}", self.now);
        Ok(())
    }

    fn connect(&mut self, name: &str) -> Result<(), TestCaseError> {
        let relay = self.names.iter().position(|n| n == name).unwrap();
        self.note_connection(relay)?;
        let works = self.peers[relay].act(self.now, MessageNo(0)) != Act::Refuses;
        let finding = if works { Finding::Answers } else { Finding::Unreachable };
        self.queue.news(self.now, None, &news(name, finding));
        Ok(())
    }

    /// However it fails, there is no storm of connections.
    fn note_connection(&mut self, relay: usize) -> Result<(), TestCaseError> {
        self.connections.push((self.now, relay));
        let recent = |(at, to): &&(Time, usize)| {
            *to == relay && self.now.since(*at) < Duration::from_secs(3)
        };
        let failing = !matches!(
            self.peers[relay].act(self.now, MessageNo(0)),
            Act::Takes | Act::Defers | Act::Bounces | Act::Doubts
        );
        let count = self.connections.iter().rev().filter(recent).count();
        let most = 3 * self.agents + 3;
        prop_assert!(!failing || count <= most, "{count} connections to {relay} in 3 s");
        Ok(())
    }

    /// The agent goes on with a lease: to the next relay of its plan, or to its report.
    fn fly(&mut self, mut flight: Flight) -> Result<(), TestCaseError> {
        while let Some(name) = flight.plan.relays.get(flight.at) {
            if flight.plan.except.contains(&(0, name.clone())) {
                flight.at += 1;
                continue;
            }
            let relay = self.names.iter().position(|n| n == name).unwrap();
            self.note_connection(relay)?;
            let act = self.peers[relay].act(self.now, flight.no);
            flight.act = act;
            flight.told = false;
            flight.through = match act {
                Act::Stalls(seconds, _) => self.now + Duration::from_secs(seconds),
                _ => self.now + Duration::from_millis(50),
            };
            self.flights.push(flight);
            return Ok(());
        }
        let lease = flight.plan.lease;
        if flight.outcomes.is_empty() {
            flight.outcomes.push((0, not_sent()));
        }
        let verdict = self.queue.report(self.now, lease, &flight.outcomes).unwrap();
        self.judge(&verdict)
    }

    /// A relay is through with a lease.
    fn land(&mut self, mut flight: Flight) -> Result<(), TestCaseError> {
        let name = flight.plan.relays[flight.at].clone();
        let relay = self.names.iter().position(|n| *n == name).unwrap();
        let lease = flight.plan.lease;
        let no = flight.no.0;
        let mut tell =
            |finding| drop(self.queue.news(self.now, Some(lease), &news(&name, finding)));
        let outcome = match flight.act {
            Act::Takes | Act::Stalls(_, true) => {
                tell(Finding::Works);
                self.delivered.insert(no);
                Some(Outcome::Delivered { relay: name.clone(), reply: "250".to_owned() })
            }
            Act::Refuses => {
                tell(Finding::Unreachable);
                None
            }
            Act::Hangs | Act::Stalls(_, false) => {
                tell(Finding::Fails);
                None
            }
            Act::Breaks => {
                tell(Finding::Broke);
                None
            }
            Act::Defers => {
                tell(Finding::Works);
                Some(temp(&name))
            }
            Act::Bounces => {
                tell(Finding::Works);
                self.refused.insert((no, relay));
                Some(perm(&name))
            }
            Act::Doubts => {
                tell(Finding::Broke);
                *self.copies.entry((no, relay)).or_default() += 1;
                Some(doubt(&name))
            }
        };
        let ends = matches!(outcome, Some(Outcome::Delivered { .. } | Outcome::InDoubt { .. }));
        flight.outcomes.extend(outcome.map(|outcome| (0, outcome)));
        flight.at = if ends { usize::MAX } else { flight.at + 1 };
        self.fly(flight)
    }

    fn judge(&mut self, verdict: &Verdict) -> Result<(), TestCaseError> {
        for (_, state, text) in &verdict.marks {
            let no = verdict.no.0;
            self.open.remove(&no);
            if *state == RecipientState::Failed {
                self.failed.insert(no, verdict.word);
                for relay in (0..self.peers.len()).filter(|_| verdict.word == "bounced") {
                    let copies = self.copies.get(&(no, relay)).copied().unwrap_or(0);
                    let has = self.refused.contains(&(no, relay)) || copies >= 3;
                    prop_assert!(has, "{no} bounced without {relay}: {text}");
                }
            }
        }
        if let Some((_, due, why, _)) = &verdict.deferred {
            prop_assert!(!why.is_empty());
            self.open.insert(verdict.no.0, *due);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (what, copies) in &self.copies {
            prop_assert!(*copies <= 3, "{copies} copies of {what:?}");
        }
        prop_assert_eq!(self.queue.len(), self.open.len());
        prop_assert_eq!(self.queue.in_flight(), self.flights.len());
        let most = (2 * self.agents + 1) * self.peers.len();
        prop_assert!(self.flights.len() <= most, "{} agents", self.flights.len());
        Ok(())
    }

    /// Time goes on to the next event, but not beyond.
    fn go_on(&mut self, most: Time) -> Result<bool, TestCaseError> {
        self.turn()?;
        let slow = self.flights.iter().filter(|f| !f.told && self.is_slow(f));
        let slow = slow.map(|f| f.through - self.stall_of(f) + STALL);
        let through = self.flights.iter().map(|f| f.through).chain(slow);
        let next = through.chain(self.queue.deadline()).min();
        let Some(next) = next.filter(|next| *next <= most) else {
            self.now = self.now.max(most);
            return Ok(false);
        };
        self.now = next.max(self.now);
        for index in 0..self.flights.len() {
            let flight = &self.flights[index];
            let due = flight.through - self.stall_of(flight) + STALL;
            if !flight.told && self.is_slow(flight) && due <= self.now {
                let relay = flight.plan.relays[flight.at].clone();
                let waits_for = Some("the greeting".to_owned());
                let progress = Progress { lease: flight.plan.lease, relay, waits_for };
                self.queue.progress(self.now, &progress);
                self.flights[index].told = true;
            }
        }
        while let Some(index) = self.flights.iter().position(|f| f.through <= self.now) {
            let flight = self.flights.remove(index);
            self.land(flight)?;
        }
        Ok(true)
    }

    fn is_slow(&self, flight: &Flight) -> bool {
        self.stall_of(flight) > STALL
    }

    fn stall_of(&self, flight: &Flight) -> Duration {
        match flight.act {
            Act::Stalls(seconds, _) => Duration::from_secs(seconds),
            _ => Duration::ZERO,
        }
    }

    fn run(&mut self, until: u64) -> Result<(), TestCaseError> {
        for _ in 0..20_000 {
            if !self.go_on(at(until))? {
                return Ok(());
            }
        }
        prop_assert!(false, "no end in sight at {}", self.now);
        Ok(())
    }
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => Just(Act::Takes),
        1 => Just(Act::Refuses),
        1 => Just(Act::Hangs),
        1 => Just(Act::Breaks),
        1 => Just(Act::Defers),
        1 => Just(Act::Bounces),
        1 => Just(Act::Doubts),
        1 => (1..700_u64, any::<bool>()).prop_map(|(seconds, good)| Act::Stalls(seconds, good)),
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    let never = prop_oneof![3 => Just(0), 1 => 1..=MESSAGES];
    (act(), 1..=MESSAGES, act(), 0..20_000_u64, never)
        .prop_map(|(usual, odd, act, mended, never)| Peer { usual, odd: (odd, act), mended, never })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever relays do: no storm and no standstill, few copies, and in the end each message is
    /// delivered, or every relay has refused it.
    #[test]
    fn every_message_ends_well(
        peers in prop::collection::vec(peer(), 1..=3),
        agents in 2..=3_usize,
        restart in prop::option::of(0..20_000_u64),
        // One that three agents died on is held.
        dies in prop::collection::vec(0..20_000_u64, 0..3),
    ) {
        let mut world = World::new(&peers, agents);
        let mut events: Vec<_> = dies.iter().map(|at| (*at, false)).collect();
        events.extend(restart.map(|at| (at, true)));
        events.sort_unstable();
        for (time, all) in events {
            world.run(time)?;
            if all {
                world.restart();
            } else if let Some(flight) = world.flights.pop() {
                let verdict = world.queue.agent_died(world.now, flight.plan.lease).unwrap();
                world.judge(&verdict)?;
            }
        }
        // Every relay was mended for hours.
        world.run(40_000)?;
        prop_assert!(world.open.is_empty(), "left: {:?}", world.open);
        for (no, word) in &world.failed {
            prop_assert_eq!(*word, "bounced", "{}", no);
        }
    }

    /// With one relay that takes everything, no message waits longer for the others' sake than the
    /// deadlines of its own attempts and the pauses of its own doubts.
    #[test]
    fn a_relay_that_works_takes_all(
        mut peers in prop::collection::vec(peer(), 1..=2),
        place in 0..=2_usize,
        agents in 2..=3_usize,
    ) {
        for peer in &mut peers {
            peer.mended = u64::MAX;
        }
        let good = Peer { usual: Act::Takes, odd: (0, Act::Takes), mended: 0, never: 0 };
        peers.insert(place.min(peers.len()), good);
        let mut world = World::new(&peers, agents);
        // A stage in each of the others, or three copies at one, or ten minutes of doubt.
        world.run(2 * 700 + 600 + 60)?;
        prop_assert!(world.open.is_empty(), "left: {:?}", world.open);
        prop_assert_eq!(world.delivered.len(), 8);
    }
}
