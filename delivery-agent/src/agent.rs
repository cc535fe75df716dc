//! agent - drains what qmgr feeds into one relay after the other
//!
//! One connection from qmgr is one unit of work. The agent keeps one session open over all its
//! leases and asks for the next lease while the last is under way. When a relay fails, what is left
//! goes to the next one in the same unit (S1); a session that ends after it has done some work is
//! opened again at the same relay.
//!
//! When qmgr goes while a message is under way, the message is brought to its end and reported to the
//! next qmgr (Q6). Nothing new is begun, and no other relay is tried: that is for that qmgr to decide.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use log::debug;
use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use worker_proto::clock::Time;

use crate::outcome::{Outcome, RelayNews};
use crate::relay::Relay;
use crate::smtp::session::{Config, Event, Mail, Session};
use crate::smtp::stream::{self, Link, Timeouts};
use crate::wire::Report;

mod job;
mod qmgr;

use job::Job;
use qmgr::Qmgr;
pub use qmgr::Stream;

/// Leases that are read ahead of the one under way.
const AHEAD: usize = 4;

/// What an agent knows.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The relays, best first.
    pub relays: Vec<Relay>,
    /// The name given in EHLO.
    pub helo: String,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// How long a session may last.
    pub session_limit: Duration,
    /// Where the next qmgr is when the one that gave the work has gone; None: there will be none.
    pub qmgr: Option<PathBuf>,
}

/// The session of the moment.
struct Current {
    relay: usize,
    link: Link<TcpStream>,
    since: Time,
    /// Whether the relay has answered for a message.
    settled: bool,
    opened: bool,
}

struct Unit<'a> {
    agent: &'a Agent,
    qmgr: Qmgr<'a>,
    waiting: VecDeque<Job>,
    /// Jobs that were offered to the session, in that order.
    flying: VecDeque<Job>,
    current: Option<Current>,
    /// Leases that were received.
    received: u64,
    /// The last lease for which each relay is not to be asked, as it has failed. qmgr decides about
    /// later ones: it has been told.
    down: Vec<Option<u64>>,
    /// Relays to which commands are sent one by one, since they did not keep answers apart.
    lock_step: Vec<bool>,
    last_failure: String,
    news: Vec<RelayNews>,
}

impl Agent {
    /// Serves one unit: leases in, reports out, until qmgr closes and everything was reported. The
    /// connection is non-blocking.
    pub fn serve(&self, qmgr: impl Stream) {
        let mut unit = Unit {
            agent: self,
            qmgr: Qmgr::new(qmgr, self.qmgr.as_deref()),
            waiting: VecDeque::new(),
            received: 0,
            flying: VecDeque::new(),
            current: None,
            down: vec![None; self.relays.len()],
            lock_step: vec![false; self.relays.len()],
            last_failure: "no relay can be used".to_owned(),
            news: Vec::new(),
        };
        loop {
            let now = Time::now();
            // Every wait below has its deadline: a turn of this loop is progress.
            worker_proto::watchdog::feed();
            unit.events(now);
            if unit.qmgr.is_lost() {
                unit.give_back(now);
            } else {
                unit.assign(now);
            }
            unit.write(now);
            if unit.qmgr.is_lost() && unit.flying.is_empty() && unit.qmgr.is_done(now) {
                break;
            }
            unit.wait(now);
        }
        unit.quit(Time::now());
    }
}

impl Unit<'_> {
    /// Takes in what the session has to tell.
    fn events(&mut self, now: Time) {
        let mut returned = VecDeque::new();
        while let Some(current) = &mut self.current
            && let Some(event) = current.link.event()
        {
            match event {
                Event::Open => current.opened = true,
                Event::Done(outcomes) => {
                    if let Some(job) = self.flying.pop_front()
                        && let Some(job) = self.done(now, job, outcomes)
                    {
                        returned.push_back(job);
                    }
                }
                Event::Lost { why, told } => {
                    let name = &self.agent.relays[current.relay].name;
                    let idle = current.opened && returned.is_empty() && self.flying.is_empty();
                    // A relay may end a session that has done some work, or has none to do.
                    if current.settled || idle {
                        debug!("{name}: {why}");
                    } else {
                        if current.opened
                            && !told
                            && let Some(job) = returned.front_mut()
                        {
                            job.suspect = Some((name.clone(), why.clone()));
                        }
                        self.relay_failed(&why);
                    }
                    self.current = None;
                }
            }
        }
        while let Some(job) = returned.pop_back() {
            self.waiting.push_front(job);
        }
    }

    /// Sorts the outcomes of an attempt; gives the job back when recipients are left.
    fn done(&mut self, now: Time, mut job: Job, outcomes: Vec<(usize, Outcome)>) -> Option<Job> {
        for (number, outcome) in outcomes {
            let settles = match outcome {
                Outcome::NotSent { .. } => continue,
                Outcome::InDoubt { .. } => false,
                Outcome::RejectedTemp { .. }
                | Outcome::RejectedPerm { .. }
                | Outcome::Delivered { .. } => true,
            };
            if settles {
                self.relay_works(outcome.text());
            }
            job.open.retain(|&n| n != number);
            job.outcomes.push((number, outcome));
        }
        if job.open.is_empty() {
            self.report(now, job);
            return None;
        }
        Some(job)
    }

    fn relay_works(&mut self, reply: &str) {
        if let Some(current) = &mut self.current
            && !std::mem::replace(&mut current.settled, true)
        {
            self.down[current.relay] = None;
            let relay = self.agent.relays[current.relay].name.clone();
            self.news.push(RelayNews { relay, up: true, reply: reply.to_owned() });
        }
    }

    fn relay_failed(&mut self, why: &str) {
        let Some(current) = &self.current else { return };
        // Without pipelining there is less to go wrong.
        self.lock_step[current.relay] |= current.opened;
        self.mark_down(current.relay, why);
    }

    fn mark_down(&mut self, relay: usize, why: &str) {
        // Until qmgr is told, see below.
        self.down[relay] = Some(u64::MAX);
        let name = self.agent.relays[relay].name.clone();
        self.last_failure = format!("{name}: {why}");
        debug!("{}", self.last_failure);
        self.news.push(RelayNews { relay: name, up: false, reply: why.to_owned() });
    }

    /// Gives waiting jobs to the session they belong to, opening and closing sessions for it.
    fn assign(&mut self, now: Time) {
        while let Some(job) = self.waiting.front() {
            let Some(relay) = self.choose(job) else {
                if let Some(job) = self.waiting.pop_front() {
                    self.give_up(now, job);
                }
                continue;
            };
            match &mut self.current {
                None => self.connect(relay),
                Some(current) => {
                    let old = now.since(current.since) >= self.agent.session_limit;
                    if current.relay != relay || old {
                        if !self.flying.is_empty() {
                            return;
                        }
                        self.quit(now);
                        continue;
                    }
                    if !current.link.session().wants_mail() {
                        return;
                    }
                    self.offer_front(relay);
                }
            }
        }
    }

    /// The first relay that may be asked for this job.
    fn choose(&self, job: &Job) -> Option<usize> {
        (0..self.agent.relays.len()).find(|&relay| {
            let rests = self.down[relay].is_some_and(|last| job.number <= last);
            let avoided = job.avoid.contains(&self.agent.relays[relay].name);
            !rests && !avoided && !job.unfit.contains(&relay)
        })
    }

    fn offer_front(&mut self, relay: usize) {
        let (Some(current), Some(mut job)) = (&mut self.current, self.waiting.pop_front()) else {
            return;
        };
        let mail = Mail {
            sender: job.sender.clone(),
            recipients: job.open.iter().map(|&n| (n, job.recipients[n].clone())).collect(),
            body: Rc::clone(&job.body),
        };
        match current.link.session().offer(mail) {
            Ok(()) => self.flying.push_back(job),
            Err(unfit) => {
                job.unfit.push(relay);
                job.unfit_reply = Some((self.agent.relays[relay].name.clone(), unfit.reply));
                self.waiting.push_front(job);
            }
        }
    }

    /// No relay is left for this job in this unit.
    fn give_up(&mut self, now: Time, mut job: Job) {
        let outcome = job.last_word(self.agent.relays.len(), &self.last_failure);
        let open = std::mem::take(&mut job.open);
        job.outcomes.extend(open.into_iter().map(|n| (n, outcome.clone())));
        self.report(now, job);
    }

    /// qmgr has gone: its successor decides about what is not under way, and is told what is.
    fn give_back(&mut self, now: Time) {
        while let Some(mut job) = self.waiting.pop_front() {
            let outcome = Outcome::NotSent { why: "qmgr has gone".to_owned() };
            let open = std::mem::take(&mut job.open);
            job.outcomes.extend(open.into_iter().map(|n| (n, outcome.clone())));
            self.report(now, job);
        }
        self.qmgr.announce(now, self.flying.iter().map(Job::held));
    }

    fn connect(&mut self, relay: usize) {
        let agent = self.agent;
        let Relay { name, addresses, problem, .. } = &agent.relays[relay];
        if addresses.is_empty() {
            return self.mark_down(relay, problem);
        }
        match stream::connect(addresses, agent.timeouts.connect) {
            Ok(socket) => {
                let session = Session::new(Config {
                    relay: name.clone(),
                    helo: agent.helo.clone(),
                    pipelining: !self.lock_step[relay],
                });
                // Connecting took its time.
                let now = Time::now();
                let mut link = Link::new(socket, session, agent.timeouts);
                link.flush(now);
                self.current =
                    Some(Current { relay, link, since: now, settled: false, opened: false });
            }
            Err(why) => self.mark_down(relay, &why),
        }
    }

    fn quit(&mut self, now: Time) {
        if let Some(mut current) = self.current.take() {
            current.link.session().quit();
            current.link.flush(now);
        }
    }

    fn report(&mut self, now: Time, job: Job) {
        for (number, outcome) in &job.outcomes {
            debug!("{}: to=<{}>, {outcome}", job.id, job.recipients[*number]);
        }
        let relays = std::mem::take(&mut self.news);
        for last in self.down.iter_mut().flatten() {
            *last = (*last).min(self.received);
        }
        let held = job.held();
        let report = Report { lease: job.lease, outcomes: job.outcomes, relays };
        self.qmgr.report(now, held, report);
    }

    fn write(&mut self, now: Time) {
        if let Some(current) = &mut self.current {
            current.link.flush(now);
        }
        self.qmgr.flush();
    }

    /// Waits for the next thing to happen, and reads it.
    fn wait(&mut self, now: Time) {
        let (mut fds, mut qmgr_at, mut relay_at) = (Vec::new(), None, None);
        let mut deadline = self.qmgr.deadline(!self.flying.is_empty());
        if let Some((fd, flags)) = self.qmgr.interest(self.waiting.len() < AHEAD) {
            qmgr_at = Some(fds.len());
            fds.push(PollFd::new(fd, flags));
        }
        if let Some(current) = &self.current {
            relay_at = Some(fds.len());
            fds.push(PollFd::new(current.link.as_fd(), current.link.interest()));
            deadline = deadline.into_iter().chain(current.link.deadline()).min();
        }
        // One millisecond more: a wait that is cut short would turn once for nothing.
        let left = deadline.map(|at| at.since(now) + Duration::from_millis(1));
        let timeout = left
            .map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        let polled = poll(&mut fds, timeout);
        let is_ready = |at: Option<usize>| at.is_some_and(|at| fds[at].any().unwrap_or(true));
        let ready = matches!(polled, Ok(1..));
        let (from_qmgr, from_relay) = (ready && is_ready(qmgr_at), ready && is_ready(relay_at));
        drop(fds);
        if !matches!(polled, Ok(_) | Err(Errno::EINTR)) {
            // Not known to happen; a loop that turns and waits a little beats one that spins.
            std::thread::sleep(Duration::from_millis(100));
        }
        let now = Time::now();
        if let Some(current) = &mut self.current {
            if from_relay {
                current.link.read(now);
            }
            current.link.check(now);
        }
        if from_qmgr {
            for lease in self.qmgr.read() {
                self.received += 1;
                self.waiting.push_back(Job::new(self.received, lease));
            }
        }
    }
}
