//! survivors - agents that have outlived the qmgr which gave them their work
//!
//! They connect and announce what they have under way. Such a message is not given to anybody else,
//! and their report counts as if it had been given out here. What was in flight and is not announced
//! within a moment is given out again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use mio::Token;
use worker_proto::clock::Time;
use worker_proto::multi::Reactor;

use super::link::Link;
use super::{Connected, Manager};
use crate::outcome::Outcome;
use crate::store::{MessageNo, RecipientState};
use crate::wire::{Header, Held, Report};

/// How long agents have to announce what they have: they do so as soon as they see the end of their
/// connection.
const MOMENT: Duration = Duration::from_millis(1500);

/// An agent of another qmgr.
pub(super) struct Survivor {
    link: Link,
    /// By the number that the agent knows.
    held: HashMap<u64, Kept>,
    /// Messages that are still in a damaged store, with the report if it was faster.
    unread: HashMap<u64, (Held, Option<Report>)>,
}

/// A lease of another qmgr that is known here.
struct Kept {
    /// Its number here.
    lease: u64,
    /// Where each recipient of the agent is among those of the lease here. One that has ended before
    /// is not among them.
    places: Vec<Option<usize>>,
}

/// What was in flight when the last qmgr ended, as far as nobody has announced it.
#[derive(Default)]
pub(super) struct Missing {
    leases: HashMap<MessageNo, u64>,
    /// Those that are still in a damaged store.
    unread: HashSet<MessageNo>,
    until: Time,
}

impl Missing {
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.leases.is_empty()).then_some(self.until)
    }
}

impl Manager {
    /// These were in flight: nobody gets them for a moment.
    pub(super) fn expect_survivors(&mut self, in_flight: Vec<MessageNo>) {
        // Reading a long queue took its time, in which nobody was heard.
        self.missing.until = Time::now() + MOMENT;
        for no in in_flight {
            if let Some(lease) = self.queue.adopt(no, Vec::new(), &[]) {
                self.in_flight.add(lease, no);
                self.missing.leases.insert(no, lease);
            } else if self.store.is_salvaging() || self.store.is_damaged() {
                self.missing.unread.insert(no);
            }
        }
    }

    /// A message has come back from a damaged store: an agent may have it.
    pub(super) fn read_at_last(&mut self, now: Time, no: MessageNo, id: &str) {
        if self.missing.unread.remove(&no)
            && now < self.missing.until
            && let Some(lease) = self.queue.adopt(no, Vec::new(), &[])
        {
            self.in_flight.add(lease, no);
            self.missing.leases.insert(no, lease);
        }
        let wanted = |s: &Survivor| {
            s.unread.iter().find(|(_, (held, _))| held.id == id).map(|(number, _)| *number)
        };
        let found = self.survivors.iter().find_map(|(token, s)| Some((*token, wanted(s)?)));
        let Some((token, number)) = found else { return };
        let unread = self.survivors.get_mut(&token).and_then(|s| s.unread.remove(&number));
        let Some((held, report)) = unread else { return };
        let kept = self.adopt(&held);
        match (report, kept) {
            (Some(report), kept) => self.survivors_report(now, token, report, kept),
            (None, Some(kept)) => {
                if let Some(survivor) = self.survivors.get_mut(&token) {
                    survivor.held.insert(number, kept);
                }
            }
            (None, None) => {}
        }
    }

    /// No damaged store is left to be read: what has not come back from one is lost.
    pub(super) fn nothing_unread(&mut self) {
        self.missing.unread.clear();
        for (token, survivor) in &mut self.survivors {
            for (number, (_, report)) in survivor.unread.drain() {
                if report.is_some() {
                    self.reported.push((*token, number, None));
                }
            }
        }
    }

    /// The moment is over: agents that have not announced their messages do not live any more.
    pub(super) fn give_up_missing(&mut self, now: Time) {
        if now < self.missing.until {
            return;
        }
        for lease in std::mem::take(&mut self.missing.leases).into_values() {
            self.lost_agent(now, lease);
        }
    }

    /// A client is an agent that has outlived its qmgr.
    pub(super) fn survivor(
        &mut self,
        reactor: &mut Reactor,
        now: Time,
        token: Token,
        held: Vec<Held>,
    ) {
        let Some(Connected { link, uid }) = self.clients.remove(&token) else { return };
        if uid != 0 && uid != self.owner {
            log::warn!("a client (uid {uid}) says that it is a delivery agent");
            return reactor.remove(token);
        }
        let mut survivor = Survivor { link, held: HashMap::new(), unread: HashMap::new() };
        for held in held {
            let number = held.lease;
            if let Some(kept) = self.adopt(&held) {
                log::info!("{}: delivery continues in an agent of the previous qmgr", held.id);
                survivor.held.insert(number, kept);
            } else if self.is_unread(&held.id) {
                survivor.unread.insert(number, (held, None));
            }
        }
        self.survivors.insert(token, survivor);
        self.survivor_ready(reactor, now, token);
    }

    /// Whether a message may be in a damaged store that is not read to its end.
    fn is_unread(&self, id: &str) -> bool {
        (self.store.is_salvaging() || self.store.is_damaged())
            && !matches!(self.store.by_id(id), Ok(Some(_)))
    }

    /// None: there is nothing to be told about this message any more, or somebody else has it.
    fn adopt(&mut self, held: &Held) -> Option<Kept> {
        let no = self.store.by_id(&held.id).ok().flatten().filter(|m| m.done == 0)?.no;
        let (mut positions, mut others) = (Vec::new(), Vec::new());
        let mut places = vec![None; held.recipients.len()];
        let recipients = self.store.recipients(no).ok()?;
        for r in recipients.into_iter().filter(|r| r.state == RecipientState::Queued) {
            let place = held.recipients.iter().position(|address| *address == r.address);
            if let Some(place) = place {
                places[place] = Some(positions.len());
                positions.push(r.position);
            } else {
                others.push(r.position);
            }
        }
        if let Some(missing) = self.missing.leases.remove(&no) {
            self.queue.hand_over(missing);
            self.in_flight.remove(missing);
        }
        let lease = self.queue.adopt(no, positions, &others)?;
        self.in_flight.add(lease, no);
        Some(Kept { lease, places })
    }

    pub(super) fn survivor_ready(&mut self, reactor: &mut Reactor, now: Time, token: Token) {
        let Some(survivor) = self.survivors.get_mut(&token) else { return };
        let mut open = survivor.link.advance();
        loop {
            let Some(survivor) = self.survivors.get_mut(&token) else { return };
            match survivor.link.decoder.next_frame() {
                Ok(Some(Header::Report(report))) => {
                    let number = report.lease;
                    if let Some((_, early)) = survivor.unread.get_mut(&number) {
                        *early = Some(report);
                        continue;
                    }
                    let kept = survivor.held.remove(&number);
                    self.survivors_report(now, token, report, kept);
                }
                Ok(Some(Header::News(news))) => {
                    // What it has under way is one message; no lease has the number 0.
                    let lease = survivor.held.values().next().map_or(0, |kept| kept.lease);
                    Self::tell(self.queue.news(self.clock.now(now), Some(lease), &news));
                }
                Ok(Some(Header::Progress(mut progress))) => {
                    if let Some(kept) = survivor.held.get(&progress.lease) {
                        progress.lease = kept.lease;
                        Self::tell(self.queue.progress(self.clock.now(now), &progress));
                    }
                }
                Ok(None) => break,
                Ok(Some(_)) | Err(_) => {
                    log::warn!("protocol error from a delivery agent, closing connection");
                    open = false;
                    break;
                }
            }
        }
        if !open && let Some(survivor) = self.survivors.remove(&token) {
            reactor.remove(token);
            for kept in survivor.held.into_values() {
                self.lost_agent(now, kept.lease);
            }
        }
    }

    /// What a survivor says of a message, if that is known here.
    fn survivors_report(&mut self, now: Time, token: Token, report: Report, kept: Option<Kept>) {
        let number = report.lease;
        let Some(Kept { lease, places }) = kept else {
            return self.reported.push((token, number, None));
        };
        let place = |(n, outcome): (usize, Outcome)| {
            places.get(n).copied().flatten().map(|at| (at, outcome))
        };
        let outcomes: Vec<_> = report.outcomes.into_iter().filter_map(place).collect();
        let begun = |(_, o): &(_, Outcome)| !matches!(o, Outcome::NotSent { .. });
        if outcomes.iter().any(begun) {
            self.take_report(now, &Report { lease, outcomes });
        } else {
            // Given back: it waits as before.
            self.queue.hand_over(lease);
        }
        self.reported.push((token, number, Some(lease)));
    }

    /// Reports of this turn are on disk: their agents need not keep them. [`Manager::flush_notes`]
    /// sends what this writes.
    pub(super) fn note_reports(&mut self) -> Vec<Token> {
        if !self.store.is_saved() {
            return Vec::new();
        }
        let mut told = Vec::new();
        for (token, number, lease) in std::mem::take(&mut self.reported) {
            if let Some(lease) = lease {
                self.in_flight.remove(lease);
            }
            if let Some(link) = self.link_of(token) {
                link.put(&Header::Noted(vec![number]));
                told.push(token);
            }
        }
        told
    }

    /// Most notes have gone with the agent's next message by now.
    pub(super) fn flush_notes(&mut self, told: Vec<Token>) {
        for token in told {
            if let Some(link) = self.link_of(token) {
                link.flush();
            }
        }
    }

    fn link_of(&mut self, token: Token) -> Option<&mut Link> {
        let survivor = self.survivors.get_mut(&token).map(|s| &mut s.link);
        survivor.or_else(|| self.agents.get_mut(&token).map(|a| &mut a.link))
    }
}
