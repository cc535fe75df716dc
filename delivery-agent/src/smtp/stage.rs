//! stage - the words a session and its driver share

use std::fmt;

use crate::outcome::Outcome;

/// What a session must know about itself.
#[derive(Debug, Clone)]
pub struct Config {
    /// The relay's name in outcomes.
    pub relay: String,
    /// The name given in EHLO.
    pub helo: String,
    /// Whether to use PIPELINING where it is announced.
    pub pipelining: bool,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server is ready for messages.
    Open,
    /// The oldest message offered is settled, recipient by recipient.
    Done(Vec<(usize, Outcome)>),
    /// The session is over before its time; every message was told as done before.
    Lost {
        /// What went wrong, with the server's words if it said any.
        why: String,
        /// Whether the server itself said that it ends the session, or wants a login.
        told: bool,
        /// Whether it was in the middle of the first message that was told as not sent or in doubt.
        within: bool,
    },
}

/// What the session waits for; each has its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The greeting.
    Greeting,
    /// The answer to EHLO or HELO.
    Hello,
    /// The answer to MAIL.
    Mail,
    /// The answer to a RCPT.
    Rcpt,
    /// The answer to DATA.
    Data,
    /// The server's taking of the body.
    Body,
    /// The answer to the dot.
    Dot,
    /// The answer to RSET.
    Rset,
    /// The answer to QUIT.
    Quit,
    /// A message.
    Idle,
}

impl Stage {
    /// Whether nothing of a message's text can have been sent.
    #[must_use]
    pub const fn is_before_text(self) -> bool {
        matches!(self, Self::Greeting | Self::Hello | Self::Mail | Self::Rcpt | Self::Data)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greeting => "the greeting",
            Self::Hello => "the answer to EHLO",
            Self::Mail => "the answer to MAIL",
            Self::Rcpt => "the answer to RCPT",
            Self::Data => "the answer to DATA",
            Self::Body => "sending the message",
            Self::Dot => "the answer to the end of data",
            Self::Rset => "the answer to RSET",
            Self::Quit => "the answer to QUIT",
            Self::Idle => "a message",
        })
    }
}

/// What this server cannot take, though another may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The recipients concerned, by their numbers.
    pub recipients: Vec<usize>,
    /// A reply in the form of the server's, for the outcome.
    pub reply: String,
}

/// An answer that is awaited, and the command it is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Greeting,
    Ehlo,
    Helo,
    Rset,
    Mail,
    Rcpt(usize),
    Data,
    Dot,
    /// A dot without a message, for nobody.
    LoneDot,
    Quit,
}

impl Expect {
    pub(super) const fn stage(self, dot_is_written: bool) -> Stage {
        match self {
            Self::Greeting => Stage::Greeting,
            Self::Ehlo | Self::Helo => Stage::Hello,
            Self::Rset => Stage::Rset,
            Self::Mail => Stage::Mail,
            Self::Rcpt(_) => Stage::Rcpt,
            Self::Data => Stage::Data,
            Self::Dot if !dot_is_written => Stage::Body,
            Self::Dot | Self::LoneDot => Stage::Dot,
            Self::Quit => Stage::Quit,
        }
    }
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Opening,
    Open,
    Quitting,
    Over,
}
