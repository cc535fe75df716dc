//! agents - feeding delivery agents
//!
//! A connection to the delivery service is one agent. It gets message after message as long as there
//! is work, lingers a moment, and is closed.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mio::Token;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::multi::Reactor;

use super::Manager;
use super::link::Link;
use crate::queue::{Plan, RelayChange, Task, Verdict};
use crate::store::{MessageNo, RecipientState};
use crate::wire::{Header, Lease, Report};

/// A connection to the delivery service.
pub(super) struct Agent {
    pub(super) link: Link,
    /// The lease it works on.
    lease: Option<u64>,
    /// The relay it connects to without a lease.
    probe: Option<String>,
    /// Without either, when the connection is closed.
    linger: Time,
}

/// How long an agent without work keeps its session with the relay.
const LINGER: Duration = Duration::from_secs(2);
/// How long the delivery service is left alone after it could not be reached.
const REACH_AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    pub(super) fn deadline(&self) -> Option<Time> {
        self.is_idle().then_some(self.linger)
    }

    const fn is_idle(&self) -> bool {
        self.lease.is_none() && self.probe.is_none()
    }
}

impl Manager {
    /// Reads an agent's reports.
    pub(super) fn agent_ready(&mut self, reactor: &mut Reactor, now: Time, token: Token) {
        let Some(agent) = self.agents.get_mut(&token) else { return };
        let open = agent.link.advance();
        loop {
            let Some(agent) = self.agents.get_mut(&token) else { return };
            match agent.link.decoder.next_frame() {
                Ok(Some(Header::Report(report))) if agent.lease == Some(report.lease) => {
                    agent.lease = None;
                    agent.linger = now + LINGER;
                    self.take_report(now, &report);
                    self.reported.push((token, report.lease, Some(report.lease)));
                }
                Ok(Some(Header::News(news))) => {
                    if agent.probe.as_ref() == Some(&news.relay) {
                        agent.probe = None;
                        agent.linger = now + LINGER;
                    }
                    let from = agent.lease;
                    Self::tell(self.queue.news(self.clock.now(now), from, &news));
                }
                Ok(Some(Header::Progress(progress))) => {
                    Self::tell(self.queue.progress(self.clock.now(now), &progress));
                }
                Ok(Some(_)) | Err(_) => {
                    log::warn!("protocol error from a delivery agent, closing connection");
                    return self.drop_agent(reactor, now, token);
                }
                Ok(None) => break,
            }
        }
        if !open {
            self.drop_agent(reactor, now, token);
        }
    }

    /// An agent's connection has ended; what it had is free at once (Q6).
    fn drop_agent(&mut self, reactor: &mut Reactor, now: Time, token: Token) {
        reactor.remove(token);
        let Some(Agent { lease, probe, .. }) = self.agents.remove(&token) else { return };
        if let Some(relay) = probe {
            self.queue.probe_lost(&relay);
        }
        if let Some(lease) = lease {
            self.lost_agent(now, lease);
        }
    }

    /// The agent that has this lease has ended without a report.
    pub(super) fn lost_agent(&mut self, now: Time, lease: u64) {
        self.in_flight.remove(lease);
        let queue_now = self.clock.now(now);
        if let Some(verdict) = self.queue.agent_died(queue_now, lease) {
            let id = self.id(verdict.no);
            if self.gives_out() {
                log::warn!("{id}: delivery agent terminated abnormally");
            } else {
                // At a stop the master starts no more agents: this one may never have begun.
                log::info!("{id}: delivery agent gone, message stays in the queue");
            }
            self.carry_out(now, verdict);
        }
    }

    pub(super) fn take_report(&mut self, now: Time, report: &Report) {
        let queue_now = self.clock.now(now);
        if let Some(verdict) = self.queue.report(queue_now, report.lease, &report.outcomes) {
            self.carry_out(now, verdict);
        }
    }

    /// One line for each change of a relay's state, not for each message (R2).
    pub(super) fn tell(change: Option<RelayChange>) {
        match change {
            Some(RelayChange::Down(relay, reply)) => log::warn!("relay {relay} is down: {reply}"),
            Some(RelayChange::Up(relay)) => log::info!("relay {relay} is up again"),
            Some(RelayChange::Slow(relay, stage)) => {
                log::warn!("relay {relay} is slow: other messages do not wait for {stage}");
            }
            None => {}
        }
    }

    /// Messages that have reached the end of their lifetime, before the turn's commit.
    pub(super) fn expire(&mut self, now: Time) {
        for verdict in self.queue.expire(self.clock.now(now)) {
            self.carry_out(now, verdict);
        }
    }

    /// Logs what became of a message and puts it into the store.
    fn carry_out(&mut self, now: Time, mut verdict: Verdict) {
        Self::tell(verdict.change.take());
        let no = verdict.no;
        let seconds = self.clock.stored(self.clock.now(now));
        let summary = self.store.by_no(no).ok().flatten();
        let id = summary.as_ref().map_or_else(|| no.0.to_string(), |s| s.id.clone());
        let delay = summary.as_ref().map_or(0, |s| seconds.saturating_sub(s.arrived));
        let recipients: HashMap<_, _> = if verdict.is_silent() {
            HashMap::new()
        } else {
            let recipients = self.store.recipients(no).unwrap_or_default();
            recipients.into_iter().map(|r| (r.position, r.address)).collect()
        };
        let to = |position: &i64| recipients.get(position).map_or("", String::as_str);
        for (position, outcome) in &verdict.outcomes {
            let Some(relay) = outcome.relay() else { continue };
            let (to, word, text) = (to(position), outcome.word(), outcome.text());
            log::info!("{id}: to=<{to}>, relay={relay}, delay={delay}, status={word} ({text})");
        }
        let failed = |m: &&(i64, RecipientState, String)| m.1 == RecipientState::Failed;
        for (position, _, text) in verdict.marks.iter().filter(failed) {
            let (to, word) = (to(position), verdict.word);
            log::info!("{id}: to=<{to}>, delay={delay}, status={word} ({text})");
            if let Some(summary) = &summary {
                let line = format!("{id}: from=<{}>, to=<{to}>: {word}: {text}", summary.sender);
                self.notices.add(now, &summary.origin, line);
            }
        }
        let mut result = Ok(false);
        if !verdict.marks.is_empty() {
            result = self.store.mark(no, &verdict.marks, seconds);
        }
        if let Some((attempts, due, why, held)) = verdict.deferred {
            if held {
                log::error!("{id}: held: {why}");
            } else if verdict.outcomes.iter().all(|(_, outcome)| outcome.relay().is_none()) {
                log::info!("{id}: delay={delay}, status=deferred ({why})");
            }
            let due = self.clock.stored(due);
            result = result
                .and_then(|ended| self.store.defer(no, attempts, due, &why, held).map(|()| ended));
        }
        match result {
            Ok(true) => log::info!("{id}: removed"),
            Ok(false) => {}
            // It is made again: in the next turn, or in the store that takes this one's place.
            Err(e) => log::debug!("{id}: {e}"),
        }
    }

    /// Gives work to agents, and gets more of them as there is work.
    pub(super) fn feed_agents(&mut self, reactor: &mut Reactor, now: Time) {
        let queue_now = self.clock.now(now);
        self.queue.advance(queue_now);
        // What cannot be read is put back: a turn must not ask for it again and again.
        while self.gives_out() && !self.store.is_damaged() && self.queue.has_task(queue_now) {
            let idle = self.agents.iter().find(|(_, a)| a.is_idle()).map(|(token, _)| *token);
            let token = match idle {
                Some(token) => Ok(token),
                None if now < self.agents_from => break,
                None => self.reach_agent(reactor, now),
            };
            match token {
                Ok(token) => self.give_work(now, token),
                Err(e) => {
                    self.unreachable(&e);
                    self.agents_from = now + REACH_AGAIN;
                }
            }
        }
        self.wants_agent = self.gives_out() && self.queue.has_task(queue_now);
        let done = |agent: &Agent| agent.is_idle() && (now >= agent.linger || !self.gives_out());
        let done = self.agents.iter().filter(|(_, a)| done(a)).map(|(token, _)| *token);
        for token in done.collect::<Vec<_>>() {
            reactor.remove(token);
            if let Some(mut agent) = self.agents.remove(&token) {
                // Its last report may have been noted in this turn.
                agent.link.flush();
            }
        }
    }

    /// Whether messages are given out: not any more once it was told to end.
    pub(super) fn gives_out(&self) -> bool {
        self.leaving.is_none() && self.care.is_open()
    }

    fn unreachable(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.agents_unreachable, true) {
            let subject = format!("connect {}", self.params.delivery_service_name);
            log::warn!("{}; retrying every second", Fault::io(subject, error));
        }
    }

    /// Connects to the delivery service: the master sees the connection and starts an agent.
    fn reach_agent(&mut self, reactor: &mut Reactor, now: Time) -> io::Result<Token> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(self.params.delivery_service_name.as_str())?)?;
        let (token, link) = Link::watch(reactor, UnixStream::from(fd))?;
        self.agents_unreachable = false;
        let linger = now + LINGER;
        self.agents.insert(token, Agent { link, lease: None, probe: None, linger });
        Ok(token)
    }

    /// Gives an agent the next thing to do.
    fn give_work(&mut self, now: Time, token: Token) {
        let queue_now = self.clock.now(now);
        let Some(task) = self.queue.next_task(queue_now) else { return };
        let header = match task {
            Task::Connect(relay) => Some(Header::Probe(relay)),
            Task::Send(no, first) => self.lease(now, no, first),
        };
        let (Some(header), Some(agent)) = (header, self.agents.get_mut(&token)) else { return };
        match &header {
            Header::Probe(relay) => agent.probe = Some(relay.clone()),
            Header::Lease(lease) => agent.lease = Some(lease.lease),
            _ => {}
        }
        agent.link.send(&header);
    }

    fn lease(&mut self, now: Time, no: MessageNo, first: usize) -> Option<Header> {
        let queue_now = self.clock.now(now);
        let read = || {
            let summary = self.store.by_no(no)?;
            let body = self.store.body(no)?;
            Ok((summary.zip(body), self.store.recipients(no)?))
        };
        let (found, recipients) = match read() {
            Ok((Some(found), recipients)) => (found, recipients),
            // It comes back with the damaged store that it is in.
            Ok((None, _)) if self.store.is_salvaging() => {
                self.queue.hold(no);
                self.queue.remove(no);
                return None;
            }
            Ok((None, _)) => {
                self.store.report_damage("a queued message has no body");
                self.queue.hold(no);
                log::error!("message {} is not in the store", no.0);
                return None;
            }
            // The store is put aside, and what it holds comes back.
            Err(_) if self.store.is_damaged() => {
                self.queue.put_back(no);
                return None;
            }
            // It is opened again. A message that cannot be read after that either must not keep the
            // others waiting.
            Err(e) if self.care.unread.insert(no) => {
                self.queue.put_back(no);
                self.store_failed(now, &e);
                return None;
            }
            Err(e) => {
                self.queue.hold(no);
                log::error!("message {} cannot be read and is held: {e}", no.0);
                return None;
            }
        };
        self.care.unread.remove(&no);
        let (summary, body) = found;
        let left = recipients.into_iter().filter(|r| r.state == RecipientState::Queued);
        let mut left: HashMap<_, _> = left.map(|r| (r.position, r.address)).collect();
        let mut positions: Vec<_> = left.keys().copied().collect();
        positions.sort_unstable();
        let Plan { lease, positions, relays, except } =
            self.queue.lease(queue_now, no, first, &positions);
        self.in_flight.add(lease, no);
        let recipients = positions.iter().filter_map(|position| left.remove(position)).collect();
        let (id, sender) = (summary.id, summary.sender);
        Some(Header::Lease(Lease { lease, id, sender, recipients, relays, except, body }))
    }

    fn id(&self, no: MessageNo) -> String {
        self.store.by_no(no).ok().flatten().map_or_else(|| no.0.to_string(), |s| s.id)
    }
}
