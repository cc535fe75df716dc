//! transaction - one message on its way through a session, and what each recipient was told

use std::rc::Rc;

use super::reply::Reply;
use crate::outcome::Outcome;

/// A message to send.
#[derive(Debug, Clone)]
pub struct Mail {
    /// Envelope sender, without angle brackets; may be empty.
    pub sender: String,
    /// Envelope recipients, each with the number under which its outcome is told.
    pub recipients: Vec<(usize, String)>,
    /// The message, with CR LF line ends.
    pub body: Rc<[u8]>,
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// No command of it was sent.
    Waiting,
    /// MAIL was sent.
    Envelope,
    /// The body and the dot were handed to the transport.
    Body,
}

#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) mail: Mail,
    pub(super) progress: Progress,
    sender_refused: Option<Reply>,
    recipients: Vec<Answer>,
}

#[derive(Debug, Clone)]
enum Answer {
    None,
    Accepted,
    Refused(Reply),
}

impl Transaction {
    pub(super) fn new(mail: Mail) -> Self {
        let recipients = vec![Answer::None; mail.recipients.len()];
        Self { mail, progress: Progress::Waiting, sender_refused: None, recipients }
    }

    pub(super) fn refuse_sender(&mut self, reply: Reply) {
        self.sender_refused = Some(reply);
    }

    pub(super) fn recipient(&mut self, position: usize, reply: Reply) {
        if let Some(answer) = self.recipients.get_mut(position) {
            let accepted = reply.is_positive();
            *answer = if accepted { Answer::Accepted } else { Answer::Refused(reply) };
        }
    }

    /// Whether the message has somebody to go to.
    pub(super) fn any_accepted(&self) -> bool {
        self.sender_refused.is_none()
            && self.recipients.iter().any(|a| matches!(a, Answer::Accepted))
    }

    /// The outcomes: a recipient that was refused keeps its own, the others get `rest`.
    pub(super) fn finish(self, relay: &str, rest: &Outcome) -> Vec<(usize, Outcome)> {
        let answers = self.mail.recipients.iter().zip(self.recipients);
        answers
            .map(|(&(number, _), answer)| {
                let outcome = match (&self.sender_refused, answer) {
                    (Some(reply), _) => refusal(relay, reply),
                    (None, Answer::Refused(reply)) if reply.code() == 552 => {
                        temporary(relay, &reply)
                    }
                    (None, Answer::Refused(reply)) => refusal(relay, &reply),
                    (None, Answer::None | Answer::Accepted) => rest.clone(),
                };
                (number, outcome)
            })
            .collect()
    }
}

/// The outcome of a reply that refuses.
pub(super) fn refusal(relay: &str, reply: &Reply) -> Outcome {
    if reply.is_permanent() {
        Outcome::RejectedPerm { relay: relay.to_owned(), reply: reply.to_string() }
    } else {
        temporary(relay, reply)
    }
}

/// RFC 5321 section 4.5.3.1.10: 552 to RCPT means "too many recipients" and is to be read as 452.
fn temporary(relay: &str, reply: &Reply) -> Outcome {
    Outcome::RejectedTemp { relay: relay.to_owned(), reply: reply.to_string() }
}
