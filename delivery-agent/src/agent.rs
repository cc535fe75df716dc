//! agent - drains what qmgr feeds into one relay after the other
//!
//! One connection from qmgr is one unit of work. The agent keeps its sessions open over all its
//! leases and asks for the next lease while the last is under way. When a relay fails, or refuses a
//! message or recipient, what is affected goes to the next one in the same unit (S1); a session that
//! ends after it has done some work is opened again at the same relay.
//!
//! When qmgr goes while a message is under way, the message is brought to its end and reported to the
//! next qmgr (Q6). Nothing new is begun, and no other relay is tried: that is for that qmgr to decide.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use log::debug;
use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use worker_proto::clock::Time;

use crate::outcome::{Finding, Outcome};
use crate::relay::Relay;
use crate::smtp::session::{Config, Event, Session, Unfit};
use crate::smtp::stream::{self, Link, Timeouts};
use crate::wire::Report;

mod job;
mod news;
mod qmgr;

use job::Job;
pub use qmgr::Stream;
use qmgr::{Qmgr, Work};

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
    /// After this long without an answer qmgr is told.
    pub stall: Duration,
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
    /// Whether it was given up because no answer came.
    mute: bool,
    /// The most recipients it has taken at once, when that was not all.
    most: usize,
}

struct Unit<'a> {
    agent: &'a Agent,
    qmgr: Qmgr<'a>,
    waiting: VecDeque<Job>,
    /// Jobs that were offered to the session, in that order.
    flying: VecDeque<Job>,
    current: Option<Current>,
    /// Sessions with other relays that have nothing to do at the moment, by relay.
    parked: Vec<Option<Current>>,
    /// Leases that were received.
    received: u64,
    /// The last lease for which each relay is not to be asked, as it has failed. qmgr decides about
    /// later ones: it has been told.
    down: Vec<Option<u64>>,
    /// Relays to which commands are sent one by one, since they did not keep answers apart.
    lock_step: Vec<bool>,
    last_failure: String,
    /// The lease and the relay for which qmgr was told that an answer is awaited for long.
    told_slow: Option<(u64, usize)>,
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
            parked: self.relays.iter().map(|_| None).collect(),
            down: vec![None; self.relays.len()],
            lock_step: vec![false; self.relays.len()],
            last_failure: "no relay can be used".to_owned(),
            told_slow: None,
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
            unit.tell_slow(now);
            unit.write(now);
            if unit.qmgr.is_lost() && unit.flying.is_empty() && unit.qmgr.is_done(now) {
                break;
            }
            unit.wait(now);
        }
        let now = Time::now();
        unit.quit(now);
        for relay in 0..unit.parked.len() {
            unit.current = unit.parked[relay].take();
            unit.quit(now);
        }
    }
}

impl Unit<'_> {
    /// Takes in what the session has to tell.
    fn events(&mut self, now: Time) {
        let (mut returned, mut done) = (VecDeque::new(), Vec::new());
        // Whether a message was cut off, and whether it is in doubt.
        let mut cut = None;
        while let Some(current) = &mut self.current
            && let Some(event) = current.link.event()
        {
            match event {
                Event::Open => current.opened = true,
                Event::Done(outcomes) => {
                    let Some(mut job) = self.flying.pop_front() else { continue };
                    let doubt = outcomes.iter().any(|(_, o)| matches!(o, Outcome::InDoubt { .. }));
                    let not_sent = |o: &Outcome| matches!(o, Outcome::NotSent { .. });
                    if cut.is_none() && (doubt || outcomes.iter().any(|(_, o)| not_sent(o))) {
                        cut = Some(doubt);
                    }
                    self.judge(&mut job, outcomes);
                    if job.is_done() { done.push(job) } else { returned.push_back(job) }
                }
                Event::Lost { why, told, within } => self.ended(&why, told, cut.filter(|_| within)),
            }
        }
        while let Some(job) = returned.pop_back() {
            self.waiting.push_front(job);
        }
        // After the news: qmgr decides about the next message as soon as it has the report.
        for job in done {
            self.report(now, job);
        }
    }

    /// The session has ended before its time, over a message if one was cut off.
    fn ended(&mut self, why: &str, told: bool, cut: Option<bool>) {
        let Some(current) = self.current.take() else { return };
        let name = &self.agent.relays[current.relay].name;
        let has_work =
            cut.is_some() || self.waiting.iter().any(|j| j.relays.contains(&current.relay));
        let in_doubt = cut == Some(true);
        // A relay may end a session that has done some work, or has none to do.
        let may_end = current.settled && !current.mute || current.opened && !has_work;
        if !in_doubt && may_end {
            debug!("{name}: {why}");
            return;
        }
        // Without pipelining there is less to go wrong.
        self.lock_step[current.relay] |= current.opened && !told;
        let finding = if cut.is_some() { Finding::Broke } else { Finding::Fails };
        self.mark_down(current.relay, finding, why);
    }

    /// Sorts the outcomes of an attempt.
    fn judge(&mut self, job: &mut Job, outcomes: Vec<(usize, Outcome)>) {
        let Some(current) = &mut self.current else { return };
        let relay = current.relay;
        let accepted =
            outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Delivered { .. })).count();
        let open = |o: &Outcome| matches!(o, Outcome::InDoubt { .. } | Outcome::NotSent { .. });
        // A relay that answers for one recipient and then breaks off does not work.
        let whole = !outcomes.iter().any(|(_, o)| open(o));
        for (number, outcome) in outcomes {
            match &outcome {
                // Too many at once: the rest follows in this session.
                Outcome::RejectedTemp { reply, .. } if accepted > 0 && is_too_many(reply) => {
                    if let Some(current) = &mut self.current {
                        current.most = accepted;
                    }
                }
                Outcome::RejectedTemp { .. }
                | Outcome::RejectedPerm { .. }
                | Outcome::Delivered { .. }
                    if whole =>
                {
                    self.relay_works(outcome.text());
                    job.answered(relay, number, outcome);
                }
                _ => job.answered(relay, number, outcome),
            }
        }
    }

    /// Gives waiting jobs to the session they belong to, opening and closing sessions for it.
    fn assign(&mut self, now: Time) {
        while let Some(job) = self.waiting.front() {
            let Some(relay) = self.choose(job) else {
                if let Some(job) = self.waiting.pop_front() {
                    self.report(now, job);
                }
                continue;
            };
            match &mut self.current {
                None => self.open(now, relay),
                Some(current) => {
                    let old = now.since(current.since) >= self.agent.session_limit;
                    if current.relay != relay || old {
                        if !self.flying.is_empty() {
                            return;
                        }
                        match old {
                            true => self.quit(now),
                            false => self.park(),
                        }
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
        self.choices(job).next()
    }

    /// The relays that may be asked for this job.
    fn choices(&self, job: &Job) -> impl Iterator<Item = usize> {
        let rests = |relay: usize| self.down[relay].is_some_and(|last| job.number <= last);
        job.relays.iter().copied().filter(move |&relay| !rests(relay) && job.is_for(relay))
    }

    /// Whether it is time to leave a relay that does not answer for another one: after a while, and
    /// as long as nothing of the text is on its way, so that no copy can arrive.
    fn is_to_leave(&self, now: Time) -> bool {
        let Some((job, relay, stage, since)) = self.awaited() else { return false };
        stage.is_before_text()
            && now.since(since) >= self.agent.stall
            && !self.qmgr.is_lost()
            && self.choices(job).any(|other| other != relay)
    }

    fn offer_front(&mut self, relay: usize) {
        let (Some(current), Some(mut job)) = (&mut self.current, self.waiting.pop_front()) else {
            return;
        };
        match current.link.session().offer(job.mail(relay, current.most)) {
            Ok(()) => self.flying.push_back(job),
            Err(Unfit { recipients, reply }) => {
                let name = &self.agent.relays[relay].name;
                for number in recipients {
                    let (relay_name, reply) = (name.clone(), reply.clone());
                    let outcome = Outcome::RejectedPerm { relay: relay_name, reply };
                    job.answered(relay, number, outcome);
                }
                self.waiting.push_front(job);
            }
        }
    }

    /// Leaves a session for one with another relay, and keeps it: what one relay refuses goes to the
    /// next message by message.
    fn park(&mut self) {
        if let Some(current) = self.current.take() {
            let relay = current.relay;
            self.parked[relay] = Some(current);
        }
    }

    /// Goes on with a session that was left, or begins one.
    fn open(&mut self, now: Time, relay: usize) {
        match self.parked[relay].take() {
            Some(mut current) => {
                // The relay may have ended it meanwhile.
                current.link.read(now);
                self.current = Some(current);
                self.events(now);
            }
            None => self.connect(relay),
        }
    }

    fn connect(&mut self, relay: usize) {
        let agent = self.agent;
        let Relay { name, addresses, problem, .. } = &agent.relays[relay];
        if addresses.is_empty() {
            return self.mark_down(relay, Finding::Unreachable, problem);
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
                self.current = Some(Current {
                    relay,
                    link,
                    since: now,
                    settled: false,
                    opened: false,
                    mute: false,
                    most: usize::MAX,
                });
            }
            Err(why) => self.mark_down(relay, Finding::Unreachable, &why),
        }
    }

    fn quit(&mut self, now: Time) {
        if let Some(mut current) = self.current.take() {
            current.link.session().quit();
            current.link.flush(now);
        }
    }

    /// The job is done, or no relay is left for it in this unit.
    fn report(&mut self, now: Time, job: Job) {
        let held = job.held();
        let (lease, outcomes) = (held.lease, job.into_outcomes(&self.last_failure));
        for (number, outcome) in &outcomes {
            debug!("{}: to=<{}>, {outcome}", held.id, held.recipients[*number]);
        }
        self.qmgr.report(now, held, Report { lease, outcomes });
    }

    /// qmgr has gone: its successor decides about what is not under way, and is told what is.
    fn give_back(&mut self, now: Time) {
        "qmgr has gone".clone_into(&mut self.last_failure);
        while let Some(job) = self.waiting.pop_front() {
            self.report(now, job);
        }
        if self.qmgr.announce(now, self.flying.iter().map(Job::held)) {
            self.told_slow = None;
        }
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
            let slow = self.awaited().filter(|_| self.told_slow.is_none());
            let slow = slow.map(|(.., since)| since + self.agent.stall);
            deadline = deadline.into_iter().chain(current.link.deadline()).chain(slow).min();
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
            current.mute = current.link.is_late(now);
        }
        let leaves = self.is_to_leave(now);
        if let Some(current) = &mut self.current {
            current.mute |= leaves;
            if current.mute {
                current.link.give_up();
            }
        }
        if from_qmgr {
            for work in self.qmgr.read() {
                self.take(work);
            }
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Deliver(lease) => {
                let relays = &self.agent.relays;
                let index = |name: &str| relays.iter().position(|relay| relay.name == name);
                self.received += 1;
                self.waiting.push_back(Job::new(self.received, lease, index));
            }
            Work::Probe(relay) => self.probe(&relay),
        }
    }
}

/// RFC 5321 section 4.5.3.1.10: the recipients that were not taken are for another transaction.
fn is_too_many(reply: &str) -> bool {
    reply.starts_with("452") || reply.starts_with("552")
}
