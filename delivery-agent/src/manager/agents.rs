//! agents - feeding delivery agents
//!
//! A connection to the delivery service is one agent. It gets message after message as long as there
//! is work, lingers a moment, and is closed.

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
use crate::outcome::RelayNews;
use crate::queue::{RelayChange, Verdict};
use crate::store::{MessageNo, RecipientState};
use crate::wire::{Header, Lease, Report};

/// A connection to the delivery service.
pub(super) struct Agent {
    pub(super) link: Link,
    /// The lease it works on.
    lease: Option<u64>,
    /// Without one, when the connection is closed.
    linger: Time,
}

/// How long an agent without work keeps its session with the relay.
const LINGER: Duration = Duration::from_secs(2);
/// How long the delivery service is left alone after it could not be reached.
const REACH_AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    pub(super) fn deadline(&self) -> Option<Time> {
        self.lease.is_none().then_some(self.linger)
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
                Ok(Some(_)) | Err(_) => {
                    log::warn!("a delivery agent does not speak the queue's protocol");
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
        let Some(Agent { lease: Some(lease), .. }) = self.agents.remove(&token) else { return };
        self.lost_agent(now, lease);
    }

    /// The agent that has this lease has ended without a report.
    pub(super) fn lost_agent(&mut self, now: Time, lease: u64) {
        self.in_flight.remove(lease);
        let queue_now = self.clock.now(now);
        if let Some(verdict) = self.queue.agent_died(queue_now, lease) {
            log::warn!("{}: its delivery agent has died", self.id(verdict.no));
            self.carry_out(now, verdict);
        }
    }

    pub(super) fn take_report(&mut self, now: Time, report: &Report) {
        let queue_now = self.clock.now(now);
        self.take_news(now, &report.relays);
        if let Some(verdict) = self.queue.report(queue_now, report.lease, &report.outcomes) {
            self.carry_out(now, verdict);
        }
    }

    /// One line for each change of a relay's state, not for each message (R2).
    pub(super) fn take_news(&mut self, now: Time, news: &[RelayNews]) {
        let queue_now = self.clock.now(now);
        for news in news {
            match self.queue.news(queue_now, news) {
                Some(RelayChange::Down(relay, reply)) => {
                    log::warn!("relay {relay} is down: {reply}");
                }
                Some(RelayChange::Up(relay)) => log::info!("relay {relay} is up again"),
                None => {}
            }
        }
    }

    /// Logs what became of a message and puts it into the store.
    fn carry_out(&mut self, now: Time, verdict: Verdict) {
        let no = verdict.no;
        let seconds = self.clock.stored(self.clock.now(now));
        let summary = self.store.by_no(no).ok().flatten();
        let id = summary.as_ref().map_or_else(|| no.0.to_string(), |s| s.id.clone());
        let delay = summary.map_or(0, |s| seconds.saturating_sub(s.arrived));
        let tried = verdict.outcomes.iter().any(|(_, outcome)| outcome.relay().is_some());
        if tried {
            let recipients = self.store.recipients(no).unwrap_or_default();
            for (position, outcome) in &verdict.outcomes {
                let to = recipients.iter().find(|r| r.position == *position);
                let to = to.map_or("", |r| r.address.as_str());
                let relay = outcome.relay().unwrap_or("none");
                let (word, text) = (outcome.word(), outcome.text());
                log::info!("{id}: to=<{to}>, relay={relay}, delay={delay}, status={word} ({text})");
            }
        }
        let mut result = Ok(false);
        if !verdict.marks.is_empty() {
            result = self.store.mark(no, &verdict.marks, seconds);
        }
        if let Some((attempts, due, why, held)) = verdict.deferred {
            if held {
                log::error!("{id}: held: {why}");
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
        if self.gives_out() {
            let idle = self.agents.iter().filter(|(_, a)| a.lease.is_none());
            for token in idle.map(|(token, _)| *token).collect::<Vec<_>>() {
                if !self.give_work(now, token) {
                    break;
                }
            }
            while now >= self.agents_from && self.wants_agent(queue_now) {
                match self.reach_agent(reactor, now) {
                    Ok(token) => {
                        if !self.give_work(now, token) {
                            break;
                        }
                    }
                    Err(e) => {
                        self.unreachable(&e);
                        self.agents_from = now + REACH_AGAIN;
                    }
                }
            }
        }
        self.wants_agent = self.gives_out() && self.wants_agent(queue_now);
        let done =
            |agent: &Agent| agent.lease.is_none() && (now >= agent.linger || !self.gives_out());
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
    fn gives_out(&self) -> bool {
        self.leaving.is_none() && self.care.is_open()
    }

    fn wants_agent(&self, queue_now: Time) -> bool {
        let idle = self.agents.values().any(|a| a.lease.is_none());
        !idle && self.agents.len() < self.queue.wanted_agents(queue_now)
    }

    fn unreachable(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.agents_unreachable, true) {
            let subject = format!("connect {}", self.params.delivery_service_name);
            log::warn!("{}; it is tried again each second", Fault::io(subject, error));
        }
    }

    /// Connects to the delivery service: the master sees the connection and starts an agent.
    fn reach_agent(&mut self, reactor: &mut Reactor, now: Time) -> io::Result<Token> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(self.params.delivery_service_name.as_str())?)?;
        let (token, link) = Link::watch(reactor, UnixStream::from(fd))?;
        self.agents_unreachable = false;
        self.agents.insert(token, Agent { link, lease: None, linger: now + LINGER });
        Ok(token)
    }

    /// Gives an agent its next message. False: there is none.
    fn give_work(&mut self, now: Time, token: Token) -> bool {
        let queue_now = self.clock.now(now);
        while let Some((no, avoid)) = self.queue.next_message(queue_now) {
            let Some((lease, header)) = self.lease(queue_now, no, avoid) else { continue };
            if let Some(agent) = self.agents.get_mut(&token) {
                agent.lease = Some(lease);
                agent.link.send(&header);
            }
            return true;
        }
        false
    }

    fn lease(
        &mut self,
        queue_now: Time,
        no: MessageNo,
        avoid: Vec<String>,
    ) -> Option<(u64, Header)> {
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
            Err::<_, crate::store::StoreError>(e) => {
                self.queue.hold(no);
                log::error!("message {} cannot be read and is held: {e}", no.0);
                return None;
            }
        };
        let (summary, body) = found;
        let left = recipients.into_iter().filter(|r| r.state == RecipientState::Queued);
        let (positions, recipients) = left.map(|r| (r.position, r.address)).unzip();
        let lease = self.queue.lease(queue_now, no, positions);
        self.in_flight.add(lease, no);
        let (id, sender) = (summary.id, summary.sender);
        Some((lease, Header::Lease(Lease { lease, id, sender, recipients, avoid, body })))
    }

    fn id(&self, no: MessageNo) -> String {
        self.store.by_no(no).ok().flatten().map_or_else(|| no.0.to_string(), |s| s.id)
    }
}
