//! job - a lease on its way through relays

use std::rc::Rc;

use crate::outcome::Outcome;
use crate::wire::{Held, Lease};

/// A lease on its way.
#[derive(Debug)]
pub(super) struct Job {
    /// Which lease of the unit it is.
    pub(super) number: u64,
    pub(super) lease: u64,
    pub(super) id: String,
    pub(super) sender: String,
    pub(super) body: Rc<[u8]>,
    pub(super) recipients: Vec<String>,
    /// Recipients without an outcome, by number.
    pub(super) open: Vec<usize>,
    pub(super) outcomes: Vec<(usize, Outcome)>,
    pub(super) avoid: Vec<String>,
    /// Relays that cannot take this message, and the last one's reason.
    pub(super) unfit: Vec<usize>,
    pub(super) unfit_reply: Option<(String, String)>,
    /// The relay at which a session ended over this message, and how.
    pub(super) suspect: Option<(String, String)>,
}

impl Job {
    pub(super) fn new(number: u64, lease: Lease) -> Self {
        Self {
            number,
            lease: lease.lease,
            id: lease.id,
            sender: lease.sender,
            body: Rc::from(lease.body),
            open: (0..lease.recipients.len()).collect(),
            recipients: lease.recipients,
            outcomes: Vec::new(),
            avoid: lease.avoid,
            unfit: Vec::new(),
            unfit_reply: None,
            suspect: None,
        }
    }

    /// The lease, as a qmgr that has not given it is told of it.
    pub(super) fn held(&self) -> Held {
        let (lease, id) = (self.lease, self.id.clone());
        Held { lease, id, recipients: self.recipients.clone() }
    }

    /// What the recipients are told that no relay was left for.
    pub(super) fn last_word(&mut self, relays: usize, last_failure: &str) -> Outcome {
        let all_unfit = !self.unfit.is_empty() && self.unfit.len() == relays;
        match self.unfit_reply.take() {
            Some((relay, reply)) if all_unfit => Outcome::RejectedPerm { relay, reply },
            Some((relay, reply)) => Outcome::NotSent { why: format!("{relay}: {reply}") },
            None => match self.suspect.take() {
                // It may be the message that ends sessions: it has its own pause, so that the next
                // one to try the relay is another.
                Some((relay, reply)) => Outcome::RejectedTemp { relay, reply },
                None => Outcome::NotSent { why: last_failure.to_owned() },
            },
        }
    }
}
