//! news - what the agent tells qmgr about relays
//!
//! At once and before the report on the message, so that qmgr knows it when it decides about the next
//! one; also that an answer is awaited for long.

use log::debug;
use worker_proto::clock::Time;

use super::Unit;
use super::job::Job;
use crate::outcome::{Finding, RelayNews};
use crate::smtp::session::Stage;
use crate::smtp::stream;
use crate::wire::{Header, Progress};

impl Unit<'_> {
    pub(super) fn relay_works(&mut self, reply: &str) {
        if let Some(current) = &mut self.current
            && !std::mem::replace(&mut current.settled, true)
        {
            let relay = current.relay;
            self.down[relay] = None;
            self.tell(relay, Finding::Works, reply);
        }
    }

    pub(super) fn mark_down(&mut self, relay: usize, finding: Finding, why: &str) {
        // qmgr decides about leases that it sends after it was told.
        self.down[relay] = Some(self.received);
        self.last_failure = format!("{}: {why}", self.agent.relays[relay].name);
        debug!("{}", self.last_failure);
        self.tell(relay, finding, why);
    }

    fn tell(&mut self, relay: usize, finding: Finding, reply: &str) {
        let relay = self.agent.relays[relay].name.clone();
        self.qmgr.send(&Header::News(RelayNews { relay, finding, reply: reply.to_owned() }));
    }

    /// Connects to a relay for no message's sake.
    pub(super) fn probe(&mut self, name: &str) {
        let agent = self.agent;
        let found = match agent.relays.iter().find(|relay| relay.name == name) {
            None => Err("this agent does not know the relay".to_owned()),
            Some(relay) if relay.addresses.is_empty() => Err(relay.problem.clone()),
            Some(relay) => stream::connect(&relay.addresses, agent.timeouts.connect),
        };
        let (finding, reply) = match found {
            Ok(_) => (Finding::Answers, "connection accepted".to_owned()),
            Err(why) => (Finding::Unreachable, why),
        };
        self.qmgr.send(&Header::News(RelayNews { relay: name.to_owned(), finding, reply }));
    }

    /// The job and the relay whose answer is awaited, for what, and since when.
    pub(super) fn awaited(&self) -> Option<(&Job, usize, Stage, Time)> {
        let current = self.current.as_ref()?;
        let (stage, since) = current.link.awaits()?;
        let job = self.flying.front().or_else(|| self.waiting.front())?;
        Some((job, current.relay, stage, since))
    }

    /// Tells qmgr when a relay lets a message wait, and when it has answered after all.
    pub(super) fn tell_slow(&mut self, now: Time) {
        let slow = self.awaited().filter(|(.., since)| now.since(*since) >= self.agent.stall);
        let slow = slow.map(|(job, relay, stage, _)| ((job.lease, relay), stage));
        let key = slow.map(|(key, _)| key);
        if key == self.told_slow {
            return;
        }
        let name = |relay: usize| self.agent.relays[relay].name.clone();
        let progress = |(lease, relay): (u64, usize), waits_for| {
            Header::Progress(Progress { lease, relay: name(relay), waits_for })
        };
        let over = self.told_slow.map(|key| progress(key, None));
        let begun = slow.map(|(key, stage)| progress(key, Some(stage.to_string())));
        self.told_slow = key;
        over.into_iter().chain(begun).for_each(|header| self.qmgr.send(&header));
    }
}
