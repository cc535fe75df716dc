//! world - a pool with all that is around it: clock, loop, processes
//!
//! It does what the pool says as the loop does it, a failed start reported before the rest of the
//! answer is carried out, and after every event compares the pool with the model.

use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::status::Availability;

use super::model::{Answer, Life, Model};
use crate::avail::{Action, Event, Exit, Kill, Pool, Rules, WorkerId};
use crate::notice::Notice;

/// Something that happens. Workers are named by their place in the list of those alive.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Knock,
    /// From now on starts succeed, or fail.
    Forks(bool),
    Says(usize, Availability),
    Ends(usize, Exit),
    /// News of a worker that is dead.
    Stale(Event),
    /// To the deadline of the timer.
    Deadline,
    /// Time passes, and the timer comes up if it is due.
    Wait(Duration),
    /// Time passes, and something else is noticed before the timer.
    Late(Duration),
    Reload {
        rules: Rules,
        changed: bool,
        retire: bool,
    },
    Remove(Duration),
    Reset,
    SocketShut,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) model: Model,
    pub(super) now: Time,
    pub(super) forks: bool,
    pub(super) gone: bool,
    pool: Pool,
    listening: bool,
    timer: Option<Time>,
}

impl World {
    pub(super) fn new(rules: Rules) -> Self {
        let mut world = Self {
            model: Model::new(rules.clone()),
            now: Time::from_start(Duration::from_secs(5000)),
            forks: true,
            gone: false,
            pool: Pool::new(rules),
            listening: false,
            timer: None,
        };
        let (mut actions, mut answer) = (Vec::new(), Answer::default());
        world.pool.start(world.now, &mut actions);
        world.model.pass_time(world.now, &mut answer);
        world.carry_out(actions, &answer);
        world.check();
        world
    }

    pub(super) fn step(&mut self, step: Step) {
        if self.gone {
            return;
        }
        let event = match step {
            Step::Forks(works) => {
                self.forks = works;
                return;
            }
            Step::Knock => Event::Knock,
            Step::Says(at, availability) => match self.living(at) {
                Some(id) => Event::Status(id, availability),
                None => return,
            },
            Step::Ends(at, exit) => match self.living(at) {
                Some(id) => Event::Ended(id, exit),
                None => return,
            },
            Step::Stale(event) => event,
            Step::Deadline => match self.timer {
                Some(at) => {
                    self.now = self.now.max(at);
                    Event::Tick
                }
                None => return,
            },
            Step::Wait(time) => {
                self.now = self.now + time;
                if self.timer.is_none_or(|at| at > self.now) {
                    return;
                }
                Event::Tick
            }
            Step::Late(time) => {
                self.now = self.now + time;
                return;
            }
            Step::Reload { rules, changed, retire } => {
                Event::Reload { rules: rules.into(), changed, retire }
            }
            Step::Remove(grace) => Event::Remove(grace),
            Step::Reset => Event::Reset,
            Step::SocketShut => Event::SocketShut("shut".to_owned()),
        };
        self.feed(event);
        self.check();
    }

    /// A worker that has died, if there was one.
    pub(super) fn dead(&self, at: usize) -> Option<WorkerId> {
        let alive = |id: &WorkerId| self.model.peers.iter().any(|p| p.id == *id);
        let dead: Vec<_> = (0..self.model.spawned).map(WorkerId).filter(|id| !alive(id)).collect();
        dead.get(at % dead.len().max(1)).copied()
    }

    /// The strongest signal that the workers of a removed service have had.
    pub(super) const fn killed(&self) -> Option<Kill> {
        match self.model.life {
            Life::Term(_) => Some(Kill::Term),
            Life::Killed => Some(Kill::Kill),
            Life::Serves | Life::Grace(_) | Life::Gone => None,
        }
    }

    /// The loop was told to call again.
    pub(super) const fn has_timer(&self) -> bool {
        self.timer.is_some()
    }

    fn living(&self, at: usize) -> Option<WorkerId> {
        let peers = &self.model.peers;
        peers.get(at % peers.len().max(1)).map(|p| p.id)
    }

    fn feed(&mut self, event: Event) {
        let answer = self.model.take(self.now, &event);
        let mut actions = Vec::new();
        self.pool.on(self.now, event, &mut actions);
        if answer.failed {
            let until = self.pool.throttled_until().expect("a pause after a failure");
            let (least, most) = self.model.pause_bounds();
            let pause = until.since(self.now).as_secs_f64();
            assert!((least..=most).contains(&pause), "{least} <= {pause} <= {most}");
            self.model.pause = Some(until);
        }
        self.carry_out(actions, &answer);
    }

    fn carry_out(&mut self, actions: Vec<Action>, answer: &Answer) {
        assert_eq!(&summary(&actions), answer);
        if !answer.spawns.is_empty() {
            let total = self.pool.workers().count();
            assert!(self.model.rules.max_proc.is_none_or(|max| total <= max as usize));
        }
        for action in actions {
            match action {
                Action::Listen(on) => {
                    assert_ne!(self.listening, on, "told what it knows");
                    self.listening = on;
                }
                Action::Timer(at) => {
                    assert_ne!(self.timer, at, "told what it knows");
                    self.timer = at;
                }
                Action::Spawn(id, _) if self.forks => {
                    self.feed(Event::Started(id, i32::try_from(id.0 + 1).unwrap()));
                }
                Action::Spawn(id, _) => self.feed(Event::StartFailed(id, "no room".to_owned())),
                Action::Gone => {
                    assert!(!self.gone, "gone twice");
                    self.gone = true;
                }
                // That they are for living workers is in the answer.
                Action::Retire(_) | Action::Kill(..) | Action::Wake(_) | Action::Log(_) => {}
            }
        }
    }

    fn check(&self) {
        let (pool, model) = (&self.pool, &self.model);
        assert_eq!(self.listening, model.listens());
        assert_eq!(self.listening, pool.wants_listener());
        if model.rules.start_burst == 1 {
            let rule = model.life == Life::Serves
                && model.pause.is_none()
                && model.idle() == 0
                && !model.full();
            assert_eq!(self.listening, rule, "rule I01");
        }
        assert_eq!(self.timer, model.deadline());
        assert!(self.timer.is_none_or(|at| at > self.now), "a timer in the past");
        assert_eq!(pool.throttled_until(), model.pause);
        assert_eq!(pool.stressed(self.now), self.now < model.stress_end);
        assert_eq!(pool.is_stopping(), model.life != Life::Serves);
        assert_eq!(self.gone, pool.is_stopping() && pool.workers().next().is_none());
        let total = pool.workers().count();
        assert!(pool.idle() <= total);
        assert_eq!((pool.idle(), total), (model.idle(), model.peers.len()));
        for ((id, worker), peer) in pool.workers().zip(&model.peers) {
            let pid = i32::try_from(id.0 + 1).ok();
            assert_eq!((id, worker.pid), (peer.id, pid));
            assert_eq!(
                (worker.busy, worker.retired, worker.served, worker.born),
                (peer.busy, peer.retired, peer.served, peer.born)
            );
        }
        let stats = pool.stats();
        let counts = (stats.spawned, stats.served, stats.failed);
        assert_eq!(counts, (model.spawned, model.served, model.failed));
    }
}

/// The actions as the model tells them. Fails when one is told twice, or out of order.
fn summary(actions: &[Action]) -> Answer {
    let mut answer = Answer::default();
    let (mut listens, mut timers, mut gones) = (0, 0, 0);
    for action in actions {
        let spawned = !answer.spawns.is_empty();
        assert!(!spawned || matches!(action, Action::Spawn(..)), "{actions:?}");
        match action {
            Action::Listen(_) => listens += 1,
            Action::Timer(_) => timers += 1,
            Action::Gone => gones += 1,
            Action::Spawn(id, stress) => answer.spawns.push((*id, *stress)),
            Action::Retire(id) => answer.retires.push(*id),
            Action::Kill(id, kill) => answer.kills.push((*id, *kill)),
            Action::Log(
                Notice::BadStartup { .. }
                | Notice::NoWork { .. }
                | Notice::ForkFailed { .. }
                | Notice::SocketShut { .. },
            ) => answer.failed = true,
            Action::Log(Notice::ProcessLimit { .. } | Notice::LocalLimit { .. }) => {
                answer.shortage = true;
            }
            Action::Wake(_) | Action::Log(_) => {}
        }
    }
    assert!(listens <= 1 && timers <= 1 && gones <= 1, "{actions:?}");
    answer.gone = gones == 1;
    answer
}
