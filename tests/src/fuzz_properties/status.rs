//! status - what workers write to the master, and what it makes of that
//!
//! The input is a life of a service: clients, ends of workers, reloads, and among them whatever a
//! worker may write. A small master around the pool holds it to its rules after every step.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use master::avail::{Action, Event, Exit, Pool, Rules, ThrottleRule, WorkerId};
use worker_proto::abi::Generation;
use worker_proto::clock::Time;
use worker_proto::status::{Availability, RECORD_SIZE, StatusRecord};

/// Bytes are a record if and only if they have its size; a pool keeps its rules whatever it is told.
///
/// # Panics
/// One of these does not hold.
pub fn status(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut master = Master::new(&mut input);
    while !input.0.is_empty() && !master.gone {
        master.step(&mut input);
    }
}

/// What is left of the input; behind its end everything is zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn bytes(&mut self, size: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A worker's process.
struct Live {
    pid: i32,
    generation: Generation,
}

/// The least of a master: it does what the pool says.
struct Master {
    pool: Pool,
    now: Time,
    live: BTreeMap<WorkerId, Live>,
    /// The last that has ended, and the last that was to be started.
    ended: Option<WorkerId>,
    newest: Option<WorkerId>,
    listening: bool,
    timer: Option<Time>,
    spawned: u32,
    forks: bool,
    removed: bool,
    gone: bool,
}

impl Master {
    fn new(input: &mut Input<'_>) -> Self {
        let mut master = Self {
            pool: Pool::new(rules(input)),
            now: Time::ZERO + Duration::from_secs(1),
            live: BTreeMap::new(),
            ended: None,
            newest: None,
            listening: false,
            timer: None,
            spawned: 0,
            forks: true,
            removed: false,
            gone: false,
        };
        let mut actions = Vec::new();
        master.pool.start(master.now, &mut actions);
        master.execute(actions);
        master.check();
        master
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        match what % 12 {
            // The loop reports a knock only while it listens.
            0 | 1 if self.listening => self.feed(Event::Knock),
            2 => self.garbage(input),
            3..=5 => self.honest(input),
            6 => {
                let exit = [Exit::Status(0), Exit::Status(1), Exit::Signal(9), Exit::Signal(15)];
                if let Some(id) = self.choose(input) {
                    self.live.remove(&id);
                    self.ended = Some(id);
                    self.feed(Event::Ended(id, exit[usize::from(input.byte() % 4)]));
                }
            }
            7 => self.pass(Duration::from_millis(100 * u64::from(input.byte()))),
            8 => self.pass(Duration::from_secs(10 * u64::from(input.byte()))),
            9 => {
                let (rules, flags) = (rules(input), input.byte());
                let (changed, retire) = (flags & 1 != 0, flags & 2 != 0);
                self.feed(Event::Reload { rules: rules.into(), changed, retire });
            }
            10 if what > 200 => {
                self.removed = true;
                self.feed(Event::Remove(Duration::from_secs(u64::from(input.byte()))));
            }
            10 => self.feed(Event::Reset),
            11 => {
                self.forks = input.byte() != 0;
                if let Some(id) = self.ended {
                    // What was under way for a worker that has ended.
                    self.feed(Event::Status(id, Availability::Available));
                    self.feed(Event::Ended(id, Exit::Signal(9)));
                }
            }
            _ => {}
        }
    }

    /// A worker writes anything.
    fn garbage(&mut self, input: &mut Input<'_>) {
        let size = usize::from(input.byte() % 16);
        let bytes = input.bytes(size);
        let record = StatusRecord::decode(bytes);
        assert_eq!(record.is_some(), bytes.len() == RECORD_SIZE);
        if let Some(record) = record {
            assert_eq!(record.encode(), bytes);
            self.hear(input, record);
        }
    }

    /// A worker tells the truth about its number, if not about its state.
    fn honest(&mut self, input: &mut Input<'_>) {
        let Some(Live { pid, generation }) = self.choose(input).and_then(|id| self.live.get(&id))
        else {
            return;
        };
        let state = i32::from(input.byte() % 4) - 1;
        let record = StatusRecord { pid: *pid, generation: *generation, state };
        assert_eq!(StatusRecord::decode(&record.encode()), Some(record));
        for availability in [Availability::Taken, Availability::Available] {
            let made = StatusRecord::new(*pid, *generation, availability);
            assert_eq!(made.availability(), Some(availability));
        }
        self.hear(input, record);
    }

    /// As in the master: the channel tells which worker it is, and its number must fit.
    fn hear(&mut self, input: &mut Input<'_>, record: StatusRecord) {
        let own = self.live.iter().find(|(_, live)| live.pid == record.pid).map(|(id, _)| *id);
        let Some(id) = own.or_else(|| self.choose(input)) else {
            return;
        };
        let live = &self.live[&id];
        let fits = record.pid == live.pid && record.generation == live.generation;
        assert_eq!(record.availability().is_some(), matches!(record.state, 0 | 1));
        if let (true, Some(availability)) = (fits, record.availability()) {
            self.feed(Event::Status(id, availability));
        }
    }

    fn choose(&self, input: &mut Input<'_>) -> Option<WorkerId> {
        let at = usize::from(input.byte());
        self.live.keys().nth(at % self.live.len().max(1)).copied()
    }

    /// Time goes by; what has a deadline in it gets its turn.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.timer.filter(|&at| at <= end) {
            self.now = at.max(self.now);
            self.feed(Event::Tick);
            assert_ne!(self.timer, Some(at), "a deadline that has passed does not come again");
        }
        self.now = end;
    }

    fn feed(&mut self, event: Event) {
        if self.gone {
            return;
        }
        let mut actions = Vec::new();
        self.pool.on(self.now, event, &mut actions);
        self.execute(actions);
        self.check();
    }

    fn execute(&mut self, actions: Vec<Action>) {
        let starts = actions.iter().any(|action| matches!(action, Action::Spawn(..)));
        assert!(!starts || !self.removed && self.pool.throttled_until().is_none());
        for action in actions {
            match action {
                Action::Listen(on) => {
                    assert_ne!(self.listening, on, "told twice");
                    self.listening = on;
                }
                Action::Spawn(id, stress) => self.spawn(id, stress),
                Action::Retire(id) | Action::Kill(id, _) => {
                    assert!(self.live.contains_key(&id), "a worker that is not there");
                }
                Action::Timer(at) => {
                    assert_ne!(self.timer, at, "told twice");
                    self.timer = at;
                }
                Action::Gone => {
                    assert!(self.removed && !self.gone && self.live.is_empty());
                    self.gone = true;
                }
                Action::Wake(at) => assert!(at >= self.now && !self.removed),
                Action::Log(notice) => assert!(!notice.to_string().contains('\n')),
            }
        }
    }

    fn spawn(&mut self, id: WorkerId, stress: bool) {
        let rules = Rc::clone(self.pool.rules());
        assert!(!stress || rules.stressable);
        assert!(self.newest < Some(id), "a number twice");
        self.newest = Some(id);
        assert!(rules.max_proc.is_none_or(|max| self.live.len() < max as usize));
        self.spawned += 1;
        if !self.forks {
            self.ended = Some(id);
            return self.feed(Event::StartFailed(id, "no memory".to_owned()));
        }
        let pid = i32::try_from(1000 + self.spawned).expect("an input is short");
        self.live.insert(id, Live { pid, generation: Generation(self.spawned) });
        self.feed(Event::Started(id, pid));
    }

    fn check(&self) {
        let pool = &self.pool;
        assert_eq!(self.listening, pool.wants_listener());
        assert!(!self.listening || !self.removed && pool.throttled_until().is_none());
        assert_eq!(pool.is_stopping(), self.removed);
        assert!(pool.throttled_until().is_none_or(|at| at > self.now && self.timer.is_some()));
        let spawned = pool.stats().spawned;
        let known: Vec<WorkerId> = pool.workers().map(|(id, _)| id).collect();
        // Between two actions of one answer a worker may be still to be started.
        assert!(self.live.keys().all(|id| known.contains(id)));
        assert!(spawned >= u64::from(self.spawned) && pool.stats().failed <= spawned);
    }
}

fn rules(input: &mut Input<'_>) -> Rules {
    let (limit, flags) = (input.byte(), input.byte());
    let first = Duration::from_secs(u64::from(1 + flags % 7));
    Rules {
        ext_name: "smtp".into(),
        name: "25".into(),
        path: "/usr/libexec/belfry/smtpd".into(),
        max_proc: Some(u32::from(limit % 8)).filter(|&n| n > 0),
        stressable: flags & 1 != 0,
        throttle: ThrottleRule { first, most: first * u32::from(1 + limit / 16) },
        start_burst: u32::from(1 + (flags >> 2) % 3),
        min_spare: u32::from((flags >> 4) % 3),
        kill_time: Duration::from_secs(5),
        compat: flags & 2 != 0,
    }
}
