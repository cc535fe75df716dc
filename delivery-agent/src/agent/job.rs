//! job - a lease on its way through relays

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::outcome::Outcome;
use crate::smtp::session::Mail;
use crate::wire::{Held, Lease};

/// A lease on its way.
#[derive(Debug)]
pub(super) struct Job {
    /// Which lease of the unit it is.
    pub(super) number: u64,
    pub(super) lease: u64,
    id: String,
    sender: String,
    body: Rc<[u8]>,
    recipients: Vec<String>,
    /// The relays that may be asked, in order.
    pub(super) relays: Vec<usize>,
    /// Recipients that no relay has, by number.
    open: Vec<usize>,
    /// Which recipient has an answer of which relay, or is not for it.
    asked: BTreeSet<(usize, usize)>,
    outcomes: Vec<(usize, Outcome)>,
}

impl Job {
    /// A lease, with the numbers that the agent has for the relays' names.
    pub(super) fn new(number: u64, lease: Lease, index: impl Fn(&str) -> Option<usize>) -> Self {
        let except = lease.except.iter().filter_map(|(n, relay)| Some((*n, index(relay)?)));
        Self {
            number,
            lease: lease.lease,
            id: lease.id,
            sender: lease.sender,
            body: Rc::from(lease.body),
            open: (0..lease.recipients.len()).collect(),
            recipients: lease.recipients,
            relays: lease.relays.iter().filter_map(|name| index(name)).collect(),
            asked: except.collect(),
            outcomes: Vec::new(),
        }
    }

    /// The lease, as a qmgr that has not given it is told of it.
    pub(super) fn held(&self) -> Held {
        let (lease, id) = (self.lease, self.id.clone());
        Held { lease, id, recipients: self.recipients.clone() }
    }

    /// Whether some recipient is left to ask a relay about.
    pub(super) fn is_for(&self, relay: usize) -> bool {
        self.open.iter().any(|&n| !self.asked.contains(&(n, relay)))
    }

    /// The message for the recipients that are left to ask a relay about, at most so many.
    pub(super) fn mail(&self, relay: usize, most: usize) -> Mail {
        let left = self.open.iter().filter(|&&n| !self.asked.contains(&(n, relay)));
        Mail {
            sender: self.sender.clone(),
            recipients: left.take(most).map(|&n| (n, self.recipients[n].clone())).collect(),
            body: Rc::clone(&self.body),
        }
    }

    /// A relay has answered for a recipient, or cannot be asked about it.
    pub(super) fn answered(&mut self, relay: usize, number: usize, outcome: Outcome) {
        match &outcome {
            Outcome::NotSent { .. } => return,
            Outcome::RejectedTemp { .. } | Outcome::RejectedPerm { .. } => {
                self.asked.insert((number, relay));
            }
            // Another copy is not for this lease: when and where it goes is qmgr's decision.
            Outcome::InDoubt { .. } | Outcome::Delivered { .. } => {
                self.open.retain(|&n| n != number);
            }
        }
        self.outcomes.push((number, outcome));
    }

    /// Whether every recipient has ended.
    pub(super) const fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// No relay is left: the outcomes, with this reason for those that none has said anything of.
    pub(super) fn into_outcomes(mut self, why: &str) -> Vec<(usize, Outcome)> {
        let told: BTreeSet<_> = self.outcomes.iter().map(|(n, _)| *n).collect();
        let untold = self.open.iter().filter(|n| !told.contains(n));
        let not_sent = |n: &usize| (*n, Outcome::NotSent { why: why.to_owned() });
        self.outcomes.extend(untold.map(not_sent));
        self.outcomes
    }
}
