//! avail - process creation policy
//!
//! A [`Pool`] is the policy for one service: it is told what happened and answers what to do. It
//! starts a worker when a client knocks and no worker is free, holds the limit, pauses after failures
//! (throttle), restarts workers under stress, and stops them in steps. It reads no clock and touches
//! no process; it knows workers by number.
//!
//! One rule decides about listening: not stopping, not throttled, nobody idle, below the limit
//! ([`Pool::wants_listener`]). It is compared with what is registered once, at the end of
//! [`Pool::on`], and so are the spare workers and the timer.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_proto::clock::Time;
use worker_proto::status::Availability;

use crate::notice::Notice;

mod throttle;
mod types;

pub use throttle::{Throttle, ThrottleRule};
pub use types::{Action, Event, Exit, Kill, Rules, Stats, Worker, WorkerId};

/// How long a stress-mode pulse and the silence between two notices about the limit last (M01, I05).
const PULSE: Duration = Duration::from_secs(1000);
/// A worker that ends this soon with status 0 and no client has done no work (W04). Later, it may have
/// been idle for its whole max_idle.
const NO_WORK: Duration = Duration::from_secs(1);

/// The process creation policy of one service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pool {
    rules: Rc<Rules>,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: u64,
    throttle: Throttle,
    stress_until: Option<Time>,
    limit_noticed: Option<Time>,
    stopping: Option<Stopping>,
    stats: Stats,
    /// What the loop was last told. A pool that another process goes on with begins anew with it:
    /// [`Pool::start`].
    #[serde(skip)]
    listening: bool,
    #[serde(skip)]
    timer: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stopping {
    Grace(Time),
    Term(Time),
    Killed,
    Gone,
}

impl Pool {
    /// A pool without workers that does not listen yet; [`Pool::start`] begins.
    #[must_use]
    pub fn new(rules: impl Into<Rc<Rules>>) -> Self {
        let rules = rules.into();
        // A seed of the name keeps services that fail together from coming back together.
        let seed =
            rules.name.bytes().fold(0, |s: u64, b| s.wrapping_mul(31).wrapping_add(b.into()));
        Self {
            rules,
            workers: BTreeMap::new(),
            next_worker: 0,
            throttle: Throttle::new(seed),
            stress_until: None,
            limit_noticed: None,
            stopping: None,
            stats: Stats::default(),
            listening: false,
            timer: None,
        }
    }

    /// Begins: the first actions.
    pub fn start(&mut self, now: Time, out: &mut Vec<Action>) {
        let from = out.len();
        self.settle(now, out);
        put_in_order(&mut out[from..]);
    }

    /// Takes in an event and appends what to do, in order.
    pub fn on(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        let from = out.len();
        match event {
            Event::Knock => self.knock(now, out),
            Event::Started(id, pid) => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.pid = Some(pid);
                }
            }
            Event::StartFailed(id, reason) => {
                self.workers.remove(&id);
                self.stats.failed += 1;
                out.push(Action::Log(Notice::ForkFailed { reason }));
                self.pause(now);
            }
            Event::Status(id, availability) => self.status(id, availability),
            Event::Ended(id, exit) => self.ended(now, id, exit, out),
            Event::Tick => {}
            Event::Reload { rules, changed, retire } => {
                self.rules = rules;
                if changed && !self.rules.compat {
                    self.throttle.clear();
                }
                if retire {
                    self.retire_all(out);
                }
            }
            Event::Remove(grace) => {
                self.retire_all(out);
                let end = now + grace;
                self.stopping = Some(match self.stopping {
                    None => Stopping::Grace(end),
                    Some(Stopping::Grace(before)) => Stopping::Grace(before.min(end)),
                    // A second removal hastens the end and never goes a step back.
                    Some(later) => later,
                });
            }
            Event::Reset => self.throttle.clear(),
            Event::SocketShut(_) if self.stopping.is_some() => {}
            Event::SocketShut(reason) => {
                // Whichever it was, all of them have a socket to which nobody can connect.
                self.retire_all(out);
                self.stats.failed += 1;
                let Rules { ext_name, name, .. } = &*self.rules;
                let (ext_name, name) = (ext_name.clone(), name.clone());
                out.push(Action::Log(Notice::SocketShut { ext_name, name, reason }));
                self.pause(now);
            }
        }
        self.settle(now, out);
        put_in_order(&mut out[from..]);
    }

    /// The rules in force.
    #[must_use]
    pub const fn rules(&self) -> &Rc<Rules> {
        &self.rules
    }

    /// The workers, oldest first.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(id, worker)| (*id, worker))
    }

    /// Counters.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// Until when no worker is started, if it is paused.
    #[must_use]
    pub const fn throttled_until(&self) -> Option<Time> {
        self.throttle.until()
    }

    /// Whether workers are started with `stress=yes`.
    #[must_use]
    pub fn stressed(&self, now: Time) -> bool {
        self.stress_until.is_some_and(|end| now < end)
    }

    /// Whether the service was removed and waits for its workers to end.
    #[must_use]
    pub const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether the limit of workers is reached.
    #[must_use]
    pub fn at_limit(&self) -> bool {
        self.rules.max_proc.is_some_and(|max| self.workers.len() >= max as usize)
    }

    /// Workers that are free for a client. One that was told to end is not counted on: it will see
    /// that before a client, and nobody must wait for it (W08).
    #[must_use]
    pub fn idle(&self) -> usize {
        self.workers.values().filter(|w| !w.busy && !w.retired).count()
    }

    /// Whether no worker can be started only because those that were told to end have not.
    #[must_use]
    pub fn waits_for_retired(&self) -> bool {
        self.stopping.is_none() && self.at_limit() && self.workers.values().all(|w| w.retired)
    }

    /// The workers that keep others from being started although they were told to end and have no
    /// client.
    #[must_use]
    pub fn hung(&self) -> Vec<WorkerId> {
        let waits = self.waits_for_retired();
        let idle = self.workers.iter().filter(|(_, worker)| waits && !worker.busy);
        idle.map(|(id, _)| *id).collect()
    }

    /// The rule of listening (I01).
    #[must_use]
    pub fn wants_listener(&self) -> bool {
        self.stopping.is_none()
            && self.throttle.until().is_none()
            && !self.at_limit()
            && self.lacks_idle()
    }

    /// Nobody is free; or, with a burst, those who are have not said a word yet and are fewer than
    /// may come up together.
    fn lacks_idle(&self) -> bool {
        let idle = self.idle();
        let burst = self.rules.start_burst as usize;
        idle == 0
            || idle < burst
                && self.workers.values().all(|w| w.busy || w.retired || !w.heard && w.served == 0)
    }

    fn knock(&mut self, now: Time, out: &mut Vec<Action>) {
        // An event of the same turn may have changed things since the socket was reported.
        if !self.wants_listener() {
            return;
        }
        let last = self.rules.max_proc.is_some_and(|max| self.workers.len() + 1 >= max as usize);
        if self.rules.stressable && last {
            if !self.stressed(now) {
                self.retire_all(out);
            }
            self.stress_until = Some(now + PULSE);
        }
        self.spawn(now, out);
    }

    fn spawn(&mut self, now: Time, out: &mut Vec<Action>) {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.stats.spawned += 1;
        let worker =
            Worker { pid: None, busy: false, retired: false, served: 0, born: now, heard: false };
        self.workers.insert(id, worker);
        out.push(Action::Spawn(id, self.rules.stressable && self.stressed(now)));
    }

    /// What a worker says is gossip: a state it is in already changes nothing (J05).
    fn status(&mut self, id: WorkerId, availability: Availability) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.heard = true;
        match availability {
            Availability::Taken => worker.busy = true,
            Availability::Available if worker.busy => {
                worker.busy = false;
                worker.served += 1;
                self.stats.served += 1;
                self.throttle.success(worker.born);
            }
            Availability::Available => {}
        }
    }

    fn ended(&mut self, now: Time, id: WorkerId, exit: Exit, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        self.stats.last_exit = Some(exit);
        let (path, pid) = (self.rules.path.clone(), worker.pid.unwrap_or(0));
        let normal = exit == Exit::Status(0);
        // A program that catches SIGTERM may tell it by its status, as Postfix's cleanup does.
        let told = self.stopping.is_some()
            && matches!(exit, Exit::Signal(libc::SIGTERM) | Exit::Status(libc::SIGTERM));
        if !normal && !told {
            out.push(Action::Log(match exit {
                Exit::Status(status) => Notice::ExitStatus { path: path.clone(), pid, status },
                Exit::Signal(signal) => Notice::KilledBySignal { path: path.clone(), pid, signal },
            }));
        }
        let unused = worker.served == 0 && !worker.retired && self.stopping.is_none();
        let no_work =
            normal && !worker.busy && now.since(worker.born) < NO_WORK && !self.rules.compat;
        // Postfix throttles a worker it has retired as well, if it ends badly (K01).
        let bad = !normal && worker.served == 0 && self.stopping.is_none();
        if bad || unused && no_work {
            self.stats.failed += 1;
            out.push(Action::Log(if bad {
                Notice::BadStartup { path }
            } else {
                Notice::NoWork { path }
            }));
            self.pause(now);
        }
        self.wake(now, worker.retired, normal, out);
    }

    /// A service with a wakeup timer does something between clients. A worker that was told to end may
    /// have taken the last wakeup with it: its successor gets one at once. After one that was lost the
    /// next goes on in a moment, and not a whole period later.
    fn wake(&self, now: Time, retired: bool, normal: bool, out: &mut Vec<Action>) {
        if self.stopping.is_some() || self.rules.compat {
            return;
        }
        if !normal {
            let ready = self.throttle.until().unwrap_or(now);
            out.push(Action::Wake(ready + self.rules.throttle.first));
        } else if retired {
            out.push(Action::Wake(self.throttle.until().unwrap_or(now)));
        }
    }

    fn pause(&mut self, now: Time) {
        self.throttle.failure(now, &self.rules.throttle);
    }

    fn retire_all(&mut self, out: &mut Vec<Action>) {
        for (id, worker) in self.workers.iter_mut().filter(|(_, w)| !w.retired) {
            worker.retired = true;
            out.push(Action::Retire(*id));
        }
    }

    /// Makes what is registered equal to what the rules say. The only place that does.
    fn settle(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.throttle.until().is_some_and(|end| end <= now) {
            self.throttle.release();
            out.push(Action::Log(Notice::DebugThrottleReleased { path: self.rules.path.clone() }));
        }
        self.stop_step(now, out);
        while self.lacks_spare() {
            self.spawn(now, out);
        }
        self.notice_limit(now, out);
        let listen = self.wants_listener();
        if self.listening != listen {
            self.listening = listen;
            out.push(Action::Listen(listen));
        }
        let stop = match self.stopping {
            Some(Stopping::Grace(end) | Stopping::Term(end)) => Some(end),
            Some(Stopping::Killed | Stopping::Gone) | None => None,
        };
        let timer = [self.throttle.until(), stop].into_iter().flatten().min();
        if self.timer != timer {
            self.timer = timer;
            out.push(Action::Timer(timer));
        }
    }

    fn lacks_spare(&self) -> bool {
        self.stopping.is_none()
            && self.throttle.until().is_none()
            && !self.at_limit()
            && self.idle() < self.rules.min_spare as usize
    }

    /// A removed service: grace, SIGTERM, SIGKILL, gone. It waits for nobody (W03, W10).
    fn stop_step(&mut self, now: Time, out: &mut Vec<Action>) {
        loop {
            let kill = match self.stopping {
                None | Some(Stopping::Gone) => return,
                Some(_) if self.workers.is_empty() => {
                    self.stopping = Some(Stopping::Gone);
                    self.throttle.clear();
                    out.push(Action::Gone);
                    return;
                }
                Some(Stopping::Grace(end)) if end <= now => {
                    self.stopping = Some(Stopping::Term(now + self.rules.kill_time));
                    Kill::Term
                }
                Some(Stopping::Term(end)) if end <= now => {
                    self.stopping = Some(Stopping::Killed);
                    Kill::Kill
                }
                Some(Stopping::Grace(_) | Stopping::Term(_) | Stopping::Killed) => return,
            };
            out.extend(self.workers.keys().map(|id| Action::Kill(*id, kill)));
        }
    }

    /// Clients wait although nobody is free: worth a line, now and then (I05, W25). A limit of one
    /// is a way of life, not a shortage.
    fn notice_limit(&mut self, now: Time, out: &mut Vec<Action>) {
        let quiet = self.limit_noticed.is_some_and(|last| now.since(last) < PULSE);
        let counts = self.rules.max_proc.is_some_and(|max| max > 1)
            && (self.rules.stressable || !self.rules.compat);
        // A retired worker that has no client is about to make room.
        let all_busy = self.workers.values().all(|w| w.busy);
        if quiet || !counts || !self.at_limit() || !all_busy || self.stopping.is_some() {
            return;
        }
        self.limit_noticed = Some(now);
        let Rules { ext_name, name, max_proc, .. } = &*self.rules;
        let limit = max_proc.unwrap_or(0);
        let (ext_name, name) = (ext_name.clone(), name.clone());
        if !self.rules.stressable {
            // Its clients are this system's own, and may mean to use all of it.
            return out.push(Action::Log(Notice::LocalLimit { ext_name, name, limit }));
        }
        out.push(Action::Log(Notice::ProcessLimit { ext_name, name, limit }));
        out.push(Action::Log(Notice::ProcessLimitAdvice));
        out.push(Action::Log(Notice::ProcessLimitStress));
    }
}

/// Signals come first: a worker that finds its channel ended can tell by SIGTERM that nobody comes
/// after it. Starting a worker can fail on the spot, and then the pool is told so before the rest of
/// its answer is carried out: what it says then must not be undone by older words.
fn put_in_order(actions: &mut [Action]) {
    actions.sort_by_key(|action| match action {
        Action::Kill(..) => 0,
        Action::Spawn(..) => 2,
        Action::Listen(_)
        | Action::Retire(_)
        | Action::Timer(_)
        | Action::Wake(_)
        | Action::Gone
        | Action::Log(_) => 1,
    });
}

#[cfg(test)]
mod tests;
