//! types - what the queue is told and answers, and what it remembers

use worker_proto::clock::Time;

use crate::outcome::Outcome;
use crate::retry::MessageRule;
use crate::store::{MessageNo, RecipientState};
use crate::wire::Lane;

/// What limits the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most agents at a time for a relay (`default_destination_concurrency_limit`).
    pub agents: usize,
    /// Agents to begin with (`initial_destination_concurrency`).
    pub first_agents: usize,
    /// Pauses between attempts.
    pub message: MessageRule,
    /// After how long a message that is not delivered has failed (`maximal_queue_lifetime`).
    pub lifetime: std::time::Duration,
}

/// What is remembered of a queued message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) arrived: Time,
    pub(super) due: Time,
    pub(super) attempts: u32,
    pub(super) lane: Lane,
    pub(super) deaths: u8,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// For any relay: in `fresh`.
    Fresh,
    /// For any relay, later: in `later`.
    Later,
    /// It has a case: with each relay by what that relay has said.
    Case,
    Leased,
    Held,
}

/// Something for an agent to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Send this message, to the relay of this number first.
    Send(MessageNo, usize),
    /// Connect to this relay, without a message.
    Connect(String),
}

/// What goes to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The number of the lease.
    pub lease: u64,
    /// The recipients by their positions in the envelope.
    pub positions: Vec<i64>,
    /// The relays to ask, one after the other.
    pub relays: Vec<String>,
    /// Which recipient, by its place in `positions`, is not for which of them.
    pub except: Vec<(usize, String)>,
}

/// A lease in the hands of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leased {
    pub(super) no: MessageNo,
    pub(super) positions: Vec<i64>,
    /// The relays that it may still ask, the one it is at first.
    pub(super) relays: Vec<usize>,
    /// The relay that it is to find out about.
    pub(super) probe: Option<usize>,
    /// The relays with which it has ended a session.
    pub(super) broke: Vec<usize>,
    pub(super) stalled: Option<Stall>,
    /// Another qmgr has given it out: it takes no agent of this one.
    pub(super) adopted: bool,
}

/// A relay that takes its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    pub(super) relay: usize,
    /// What is awaited.
    pub stage: String,
    /// Since when it is known.
    pub since: Time,
}

/// What a report or the end of an agent means for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The message.
    pub no: MessageNo,
    /// Recipients that have ended, by position, with the reply.
    pub marks: Vec<(i64, RecipientState, String)>,
    /// If the message is tried again: attempts, when, why; held if that is never.
    pub deferred: Option<(u32, Time, String, bool)>,
    /// Every outcome by position, for the log.
    pub outcomes: Vec<(i64, Outcome)>,
    /// What the end of those that failed is called in the log: bounced, expired.
    pub word: &'static str,
    /// A relay that was down has delivered it.
    pub change: Option<RelayChange>,
}

impl Verdict {
    /// Whether there is nothing to tell about it.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.marks.is_empty() && self.outcomes.iter().all(|(_, o)| o.relay().is_none())
    }

    pub(super) fn of(no: MessageNo) -> Self {
        Self { no, marks: vec![], deferred: None, outcomes: vec![], word: "bounced", change: None }
    }
}

/// A change of a relay's state, told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayChange {
    /// It cannot be used; the reason.
    Down(String, String),
    /// It can be used again.
    Up(String),
    /// It takes its time over what is awaited: other messages go elsewhere.
    Slow(String, String),
}
