//! model - the rules of process creation as plain words, to compare a pool with
//!
//! It counts anew each time, keeps a plain list, and knows nothing of what a loop was told.

use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::status::Availability;

use crate::avail::{Event, Exit, Kill, Rules, WorkerId};

#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) id: WorkerId,
    pub(super) busy: bool,
    pub(super) retired: bool,
    pub(super) spoke: bool,
    pub(super) served: u64,
    pub(super) born: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Serves,
    Grace(Time),
    Term(Time),
    Killed,
    Gone,
}

#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) rules: Rules,
    pub(super) peers: Vec<Peer>,
    pub(super) pause: Option<Time>,
    pub(super) failures: i32,
    pub(super) last_failure: Time,
    pub(super) stress_end: Time,
    pub(super) shortage_told: Option<Time>,
    pub(super) life: Life,
    pub(super) spawned: u64,
    pub(super) served: u64,
    pub(super) failed: u64,
}

/// What a pool must answer to an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) spawns: Vec<(WorkerId, bool)>,
    pub(super) retires: Vec<WorkerId>,
    pub(super) kills: Vec<(WorkerId, Kill)>,
    pub(super) gone: bool,
    /// Somebody failed: a line says so and there is a pause.
    pub(super) failed: bool,
    /// All are busy and the operator is told.
    pub(super) shortage: bool,
}

const LONG: Duration = Duration::from_secs(1000);

impl Model {
    pub(super) const fn new(rules: Rules) -> Self {
        Self {
            rules,
            peers: Vec::new(),
            pause: None,
            failures: 0,
            last_failure: Time::ZERO,
            stress_end: Time::ZERO,
            shortage_told: None,
            life: Life::Serves,
            spawned: 0,
            served: 0,
            failed: 0,
        }
    }

    pub(super) fn idle(&self) -> usize {
        self.peers.iter().filter(|p| !p.busy && !p.retired).count()
    }

    pub(super) fn full(&self) -> bool {
        self.rules.max_proc.is_some_and(|max| self.peers.len() >= max as usize)
    }

    /// A worker may be started: the service is there, not paused, and below its limit.
    fn may_start(&self) -> bool {
        self.life == Life::Serves && self.pause.is_none() && !self.full()
    }

    /// Nobody is free. With a burst: nobody is known to be free, and few are on their way up.
    pub(super) fn listens(&self) -> bool {
        let known = self.peers.iter().any(|p| !p.busy && !p.retired && p.spoke);
        let coming = self.idle();
        self.may_start() && !known && (coming == 0 || coming < self.rules.start_burst as usize)
    }

    /// The next time at which something changes by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        let end = match self.life {
            Life::Grace(end) | Life::Term(end) => Some(end),
            Life::Serves | Life::Killed | Life::Gone => None,
        };
        match (self.pause, end) {
            (Some(pause), Some(end)) => Some(pause.min(end)),
            (pause, end) => pause.or(end),
        }
    }

    /// The shortest and the longest pause after a failure.
    pub(super) fn pause_bounds(&self) -> (f64, f64) {
        let rule = self.rules.throttle;
        let first = rule.first.as_secs_f64();
        let plain = (first * 2_f64.powi(self.failures - 1)).min(rule.most.as_secs_f64());
        if rule.first == rule.most { (plain, plain) } else { (plain * 0.899, plain * 1.101) }
    }

    pub(super) fn take(&mut self, now: Time, event: &Event) -> Answer {
        let mut answer = Answer::default();
        match event {
            Event::Knock if self.listens() => self.knock(now, &mut answer),
            Event::Knock | Event::Started(..) | Event::Tick => {}
            Event::StartFailed(id, _) => {
                self.peers.retain(|p| p.id != *id);
                self.fail(now, &mut answer);
            }
            Event::Status(id, availability) => self.hear(*id, *availability),
            Event::Ended(id, exit) => self.bury(now, *id, *exit, &mut answer),
            Event::Reload { rules, changed, retire } => {
                self.rules = Rules::clone(rules);
                if *changed && !rules.compat {
                    self.forgive();
                }
                if *retire {
                    self.retire(&mut answer);
                }
            }
            Event::Remove(grace) => {
                self.retire(&mut answer);
                match self.life {
                    Life::Serves => self.life = Life::Grace(now + *grace),
                    Life::Grace(end) => self.life = Life::Grace(end.min(now + *grace)),
                    Life::Term(_) | Life::Killed | Life::Gone => {}
                }
            }
            Event::Reset => self.forgive(),
            Event::SocketShut(_) if self.life == Life::Serves => {
                self.retire(&mut answer);
                self.fail(now, &mut answer);
            }
            Event::SocketShut(_) => {}
        }
        self.pass_time(now, &mut answer);
        answer
    }

    /// What follows from the state alone.
    pub(super) fn pass_time(&mut self, now: Time, answer: &mut Answer) {
        if self.pause.is_some_and(|end| end <= now) {
            self.pause = None;
        }
        if self.life != Life::Serves && self.peers.is_empty() {
            answer.gone = self.life != Life::Gone;
            self.life = Life::Gone;
            self.forgive();
        }
        if matches!(self.life, Life::Grace(end) if end <= now) {
            self.life = Life::Term(now + self.rules.kill_time);
            answer.kills.extend(self.peers.iter().map(|p| (p.id, Kill::Term)));
        }
        if matches!(self.life, Life::Term(end) if end <= now) {
            self.life = Life::Killed;
            answer.kills.extend(self.peers.iter().map(|p| (p.id, Kill::Kill)));
        }
        while self.may_start() && self.idle() < self.rules.min_spare as usize {
            self.spawn(now, answer);
        }
        let told = self.shortage_told.is_some_and(|last| now < last + LONG);
        let worth = self.rules.max_proc.is_some_and(|max| max >= 2)
            && (self.rules.stressable || !self.rules.compat);
        let short = self.full() && self.peers.iter().all(|p| p.busy) && self.life == Life::Serves;
        if short && worth && !told {
            self.shortage_told = Some(now);
            answer.shortage = true;
        }
    }

    fn knock(&mut self, now: Time, answer: &mut Answer) {
        let last = self.rules.max_proc.is_some_and(|max| self.peers.len() + 1 >= max as usize);
        if last && self.rules.stressable {
            if now >= self.stress_end {
                self.retire(answer);
            }
            self.stress_end = now + LONG;
        }
        self.spawn(now, answer);
    }

    fn spawn(&mut self, now: Time, answer: &mut Answer) {
        let id = WorkerId(self.spawned);
        let peer = Peer { id, busy: false, retired: false, spoke: false, served: 0, born: now };
        self.peers.push(peer);
        self.spawned += 1;
        answer.spawns.push((id, self.rules.stressable && now < self.stress_end));
    }

    fn retire(&mut self, answer: &mut Answer) {
        for peer in self.peers.iter_mut().filter(|p| !p.retired) {
            peer.retired = true;
            answer.retires.push(peer.id);
        }
    }

    fn hear(&mut self, id: WorkerId, availability: Availability) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        peer.spoke = true;
        let finished = peer.busy && availability == Availability::Available;
        peer.busy = availability == Availability::Taken;
        if finished {
            peer.served += 1;
            self.served += 1;
            if peer.born > self.last_failure {
                self.forgive();
            }
        }
    }

    fn bury(&mut self, now: Time, id: WorkerId, exit: Exit, answer: &mut Answer) {
        let Some(at) = self.peers.iter().position(|p| p.id == id) else {
            return;
        };
        let peer = self.peers.remove(at);
        if self.life != Life::Serves || peer.served > 0 {
            return;
        }
        let crashed = exit != Exit::Status(0);
        let young = now < peer.born + Duration::from_secs(1);
        if crashed || young && !peer.busy && !peer.retired && !self.rules.compat {
            self.fail(now, answer);
        }
    }

    fn fail(&mut self, now: Time, answer: &mut Answer) {
        if self.pause.is_none() {
            self.failures += 1;
        }
        self.failed += 1;
        self.last_failure = now;
        answer.failed = true;
        // Until when exactly is for the pool to say, within bounds.
        self.pause = Some(now + Duration::from_secs(1));
    }

    const fn forgive(&mut self) {
        self.pause = None;
        self.failures = 0;
    }
}
