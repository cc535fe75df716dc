//! types - what the queue is told and answers, and what it remembers

use worker_proto::clock::Time;

use crate::outcome::Outcome;
use crate::retry::MessageRule;
use crate::store::{MessageNo, RecipientState};
use crate::wire::Lane;

/// What limits the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most agents at a time (`default_destination_concurrency_limit`).
    pub agents: usize,
    /// Agents to begin with (`initial_destination_concurrency`).
    pub first_agents: usize,
    /// Pauses between attempts.
    pub message: MessageRule,
    /// After how long a message that is still put off has failed (`maximal_queue_lifetime`).
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
    /// In `ready`.
    Ready,
    /// In `waiting`.
    Waiting,
    Leased,
    Held,
}

/// A lease in the hands of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leased {
    pub(super) no: MessageNo,
    pub(super) positions: Vec<i64>,
    pub(super) probes: Vec<String>,
    /// Another qmgr has given it out: it takes no agent of this one.
    pub(super) adopted: bool,
}

/// What a report or the end of an agent means for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The message.
    pub no: MessageNo,
    /// Recipients that have ended, by position, with the reply.
    pub marks: Vec<(i64, RecipientState, String)>,
    /// If the message was put off: attempts, when it is tried again, why; held if that is never.
    pub deferred: Option<(u32, Time, String, bool)>,
    /// Every outcome by position, for the log.
    pub outcomes: Vec<(i64, Outcome)>,
}

/// A change of a relay's state, told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayChange {
    /// It cannot be used; the reason.
    Down(String, String),
    /// It can be used again.
    Up(String),
}
