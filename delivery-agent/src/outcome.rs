//! outcome - what became of one recipient of one message in one attempt
//!
//! The agent tells it, qmgr acts on it. Five answers and no sixth: everything that can happen on
//! the way to a relay is one of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What became of a recipient. A `reply` is the relay's text with its code, as read, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Outcome {
    /// No relay was asked about this recipient, or none to an end: the message carries no attempt.
    NotSent {
        /// What went wrong on the way.
        why: String,
    },
    /// A relay said 4xx: the message's own clock decides when it is tried again.
    RejectedTemp {
        /// The relay, as named in `relayhost`.
        relay: String,
        /// What it said.
        reply: String,
    },
    /// A relay said 5xx: this recipient ends here.
    RejectedPerm {
        /// The relay, as named in `relayhost`.
        relay: String,
        /// What it said.
        reply: String,
    },
    /// The end of the data was sent and no answer came that could be read: it may have arrived.
    InDoubt {
        /// The relay, as named in `relayhost`.
        relay: String,
        /// What went wrong.
        why: String,
    },
    /// A relay took it over.
    Delivered {
        /// The relay, as named in `relayhost`.
        relay: String,
        /// What it said.
        reply: String,
    },
}

impl Outcome {
    /// The word for a log line: sent, deferred, bounced, in doubt.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotSent { .. } => "not sent",
            Self::RejectedTemp { .. } => "deferred",
            Self::RejectedPerm { .. } => "refused",
            Self::InDoubt { .. } => "in doubt",
            Self::Delivered { .. } => "sent",
        }
    }

    /// The relay that was asked, if one was.
    #[must_use]
    pub fn relay(&self) -> Option<&str> {
        match self {
            Self::NotSent { .. } => None,
            Self::RejectedTemp { relay, .. }
            | Self::RejectedPerm { relay, .. }
            | Self::InDoubt { relay, .. }
            | Self::Delivered { relay, .. } => Some(relay),
        }
    }

    /// The relay's reply, or the reason there is none.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::RejectedTemp { reply, .. }
            | Self::RejectedPerm { reply, .. }
            | Self::Delivered { reply, .. } => reply,
            Self::NotSent { why } | Self::InDoubt { why, .. } => why,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relay = self.relay().unwrap_or("none");
        write!(f, "relay={relay}, {} ({})", self.word(), self.text())
    }
}

/// What an agent learned about a relay itself. It is told at once, before the report on the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayNews {
    /// The relay, as named in `relayhost`.
    pub relay: String,
    /// What was found.
    pub finding: Finding,
    /// Its exact last reply, or what failed.
    pub reply: String,
}

/// What an agent found at a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It has judged a message: it works.
    Works,
    /// It accepts connections; no more was asked.
    Answers,
    /// It has no address, or accepts no connection.
    Unreachable,
    /// A session ended before anything of a message was sent.
    Fails,
    /// A session ended in the middle of a message: the relay may be at fault, or the message.
    Broke,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_survives_the_wire_and_reads_well() {
        let outcome = Outcome::RejectedTemp {
            relay: "[a]:587".to_owned(),
            reply: "451 4.7.1 later".to_owned(),
        };
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(text, r#"{"what":"rejected_temp","relay":"[a]:587","reply":"451 4.7.1 later"}"#);
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
        assert_eq!(outcome.to_string(), "relay=[a]:587, deferred (451 4.7.1 later)");
    }

    #[test]
    fn what_was_not_sent_has_no_relay() {
        let outcome = Outcome::NotSent { why: "every relay is down".to_owned() };
        assert_eq!(outcome.relay(), None);
        assert_eq!(outcome.to_string(), "relay=none, not sent (every relay is down)");
    }
}
