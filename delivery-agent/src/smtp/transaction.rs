//! transaction - one message on its way through a session, and what each recipient was told

use std::rc::Rc;

use super::capability::Capabilities;
use super::reply::Reply;
use super::stage::Unfit;
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

impl Mail {
    /// Whether a server can take this message for all its recipients.
    pub(super) fn fits(&self, capabilities: &Capabilities) -> Result<(), Unfit> {
        let clean = |a: &str| !a.chars().any(char::is_control);
        let writable = |a: &str| capabilities.smtputf8 || a.is_ascii();
        self.all_are(&clean, "553 5.1.3 control character in an address")?;
        if !capabilities.takes_size(self.body.len() as u64) {
            self.all_are(
                &|_| false,
                "552 5.3.4 message is larger than the relay announces to take",
            )?;
        }
        self.all_are(&writable, "553 5.6.7 the relay does not announce SMTPUTF8")
    }

    /// Whether sender and recipients pass; what the sender does not pass, nobody does.
    fn all_are(&self, good: &dyn Fn(&str) -> bool, reply: &str) -> Result<(), Unfit> {
        let all = !good(&self.sender);
        let bad = self.recipients.iter().filter(|(_, r)| all || !good(r));
        let recipients: Vec<_> = bad.map(|(number, _)| *number).collect();
        match recipients.is_empty() {
            true => Ok(()),
            false => Err(Unfit { recipients, reply: reply.to_owned() }),
        }
    }

    /// MAIL, with the parameters that the server announces to know.
    pub(super) fn mail_command(&self, capabilities: &Capabilities) -> String {
        let mut line = format!("MAIL FROM:<{}>", self.sender);
        if capabilities.size.is_some() {
            line.push_str(&format!(" SIZE={}", self.body.len()));
        }
        if capabilities.eight_bit && !self.body.is_ascii() {
            line.push_str(" BODY=8BITMIME");
        }
        if !self.is_ascii() {
            line.push_str(" SMTPUTF8");
        }
        line
    }

    pub(super) fn rcpt_command(&self, position: usize) -> String {
        format!("RCPT TO:<{}>", self.recipients.get(position).map_or("", |(_, r)| r))
    }

    fn addresses(&self) -> impl Iterator<Item = &String> {
        self.recipients.iter().map(|(_, r)| r).chain([&self.sender])
    }

    fn is_ascii(&self) -> bool {
        self.addresses().all(|a| a.is_ascii())
    }
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
