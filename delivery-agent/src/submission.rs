//! submission - from what was handed in to what is queued
//!
//! smtpd and sendmail(1) both end here, so that a message is the same whichever way it came.

use std::time::Duration;

use worker_proto::params::CommonParams;
use worker_proto::sys::LocalTime;

use crate::maildrop::Limits;
use crate::message::{self, MAX_FIELDS, Message};
use crate::smtp::server::Answer;
use crate::wire::{Lane, Submission};

/// What a submission takes from this host.
#[derive(Debug, Clone)]
pub struct Host {
    /// `myhostname`
    pub name: String,
    /// `myorigin`
    pub origin: String,
    /// `mail_name`
    pub mail_name: String,
    /// A message with more Received fields than this loops.
    pub hop_limit: usize,
    /// What a message may be when it is complete.
    pub limits: Limits,
}

/// How a message came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From a user of this host.
    User(u32),
    /// Over the network: the client's address, the name it gave, the protocol's name.
    Network {
        /// The client's address.
        address: String,
        /// The name in its EHLO.
        helo: String,
        /// `SMTP` or `ESMTP`.
        protocol: &'static str,
    },
}

impl Host {
    /// From the parameters of every program.
    #[must_use]
    pub fn new(common: &CommonParams, hop_limit: u64, limits: Limits) -> Self {
        Self {
            name: common.myhostname.clone(),
            origin: common.myorigin.clone(),
            mail_name: common.mail_name.clone(),
            hop_limit: usize::try_from(hop_limit).unwrap_or(usize::MAX),
            limits,
        }
    }

    /// Makes a submission of a message in any form.
    ///
    /// # Errors
    /// The message cannot be sent; the answer says why.
    pub fn submission(
        &self,
        raw: &[u8],
        sender: &str,
        recipients: Vec<String>,
        source: &Source,
        now: Duration,
    ) -> Result<Submission, Answer> {
        self.completed(Message::parse(raw), sender, recipients, source, now)
    }

    /// Makes a submission of a message that was read, perhaps without its body: that is then to follow.
    ///
    /// # Errors
    /// The message cannot be sent; the answer says why.
    pub fn completed(
        &self,
        mut message: Message,
        sender: &str,
        recipients: Vec<String>,
        source: &Source,
        now: Duration,
    ) -> Result<Submission, Answer> {
        if message.count("Received") > self.hop_limit {
            return Err(Answer::new(554, "5.4.6", "mail loop detected: too many hops"));
        }
        if message.has_too_many_fields() {
            let text = format!("the header has more than {MAX_FIELDS} fields");
            return Err(Answer::new(554, "5.6.0", text));
        }
        let sender = self.complete_sender(sender);
        let lane = lane(&message);
        let date = LocalTime::at(now).date_header();
        let from = match sender.as_str() {
            "" => format!("MAILER-DAEMON@{}", self.name),
            sender => sender.to_owned(),
        };
        message.drop_private();
        message.qualify(&self.origin);
        message.complete(&from, &date, &message::message_id(now, &self.name));
        message.prepend("Received", &self.received(source, &date));
        let origin = source.to_string();
        let token = message::unique();
        let body = message.to_bytes();
        // It has grown: by line ends, folds, and the domains of addresses.
        if !self.limits.admit(body.len() as u64) {
            let limit = self.limits.bytes;
            let text = format!("the completed message is larger than {limit} bytes");
            return Err(Answer::new(552, "5.3.4", text));
        }
        Ok(Submission { sender, recipients, origin, lane, token, body })
    }

    /// A sender without a domain gets this host's.
    fn complete_sender(&self, sender: &str) -> String {
        match sender.is_empty() || sender.contains('@') {
            true => sender.to_owned(),
            false => format!("{sender}@{}", self.origin),
        }
    }

    fn received(&self, source: &Source, date: &str) -> String {
        let Self { name, mail_name, .. } = self;
        match source {
            Source::User(uid) => format!("by {name} ({mail_name}, from userid {uid});\r\n\t{date}"),
            Source::Network { address, helo, protocol } => {
                let helo: String = helo.chars().filter(|&c| is_plain(c)).collect();
                format!(
                    "from {helo} (unknown [{address}])\r\n\tby {name} ({mail_name}) with \
                     {protocol};\r\n\t{date}"
                )
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid {uid}"),
            Self::Network { address, .. } => write!(f, "smtp {address}"),
        }
    }
}

/// What may stand in a host name or an address literal; the rest could end a comment or begin one.
const fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']')
}

/// The lane a message asks for (R7): `Importance: high`, `Priority: urgent`, `X-Priority: 1` or 2 are
/// urgent, `Precedence: bulk` and the like can wait.
fn lane(message: &Message) -> Lane {
    let value = |name| message.values(name).first().map_or_else(String::new, |v| v.to_lowercase());
    let x_priority = value("X-Priority");
    let urgent = value("Importance") == "high"
        || value("Priority") == "urgent"
        || x_priority.starts_with(['1', '2']);
    let bulk = matches!(value("Precedence").as_str(), "bulk" | "junk" | "list")
        || value("Priority") == "non-urgent";
    match (urgent, bulk) {
        (true, _) => Lane::Urgent,
        (false, true) => Lane::Bulk,
        (false, false) => Lane::Normal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            name: "h.example".to_owned(),
            origin: "o.example".to_owned(),
            mail_name: "Belfry".to_owned(),
            hop_limit: 3,
            limits: Limits::new(0),
        }
    }

    fn submit(raw: &str, sender: &str, source: &Source) -> Result<Submission, Answer> {
        let to = vec!["a@b".to_owned()];
        host().submission(raw.as_bytes(), sender, to, source, Duration::from_secs(86_400 * 365))
    }

    fn text(submission: &Submission) -> String {
        String::from_utf8(submission.body.clone()).unwrap()
    }

    #[test]
    fn m3_a_users_mail_is_completed() {
        let raw = "Subject: x\nAuto-Submitted: auto-generated\nBcc: z@z\n\nhello\n";
        let got = submit(raw, "root", &Source::User(0)).unwrap();
        assert_eq!((got.sender.as_str(), got.origin.as_str()), ("root@o.example", "uid 0"));
        let text = text(&got);
        assert!(text.starts_with("Received: by h.example (Belfry, from userid 0);\r\n\t"));
        for line in
            ["Auto-Submitted: auto-generated", "From: root@o.example", "Date: ", "Message-ID: <"]
        {
            assert!(text.contains(&format!("\r\n{line}")), "{line} in {text}");
        }
        assert!(text.ends_with("@h.example>\r\n\r\nhello\r\n"));
        assert!(!text.contains("z@z"));
    }

    #[test]
    fn m4_a_clients_name_cannot_forge_a_field() {
        let source = Source::Network {
            address: "192.0.2.1".to_owned(),
            helo: "a) by evil (b\r\nX: y".to_owned(),
            protocol: "ESMTP",
        };
        let text = text(&submit("From: f@x\n\n", "", &source).unwrap());
        let want = "Received: from abyevilbX:y (unknown [192.0.2.1])\r\n\tby h.example (Belfry) with \
                    ESMTP;\r\n\t";
        assert!(text.starts_with(want), "{text}");
        assert!(text.contains("\r\nFrom: f@x\r\n"));
    }

    #[test]
    fn a_loop_is_refused_and_a_null_byte_is_left_out() {
        let raw = format!("{}\nx\n", "Received: x\n".repeat(4));
        let refusal = |raw: &str| submit(raw, "", &Source::User(1)).unwrap_err().to_string();
        assert_eq!(refusal(&raw), "554 5.4.6 mail loop detected: too many hops");
        let got = submit("Subject: x\n\na\0b\n", "", &Source::User(1)).unwrap();
        assert!(text(&got).ends_with("\r\n\r\nab\r\n"));
    }

    /// Each field takes more memory than its bytes: 10 MB of short ones took 180 MB.
    #[test]
    fn m4_a_header_of_a_million_fields_is_refused() {
        let header = |count: usize| format!("{}\nx\n", "A:\n".repeat(count));
        let refused = submit(&header(1_000_000), "", &Source::User(1)).unwrap_err();
        assert_eq!(refused.to_string(), "554 5.6.0 the header has more than 100000 fields");
        let (message, _) = Message::head(header(1_000_000).as_bytes());
        assert!(message.to_bytes().len() < 1_000_000, "the rest was not read");
        assert!(submit(&header(50_000), "", &Source::User(1)).is_ok());
    }

    #[test]
    fn r7_lanes_by_what_the_header_says() {
        for (header, lane) in [
            ("Subject: x", Lane::Normal),
            ("Importance: High", Lane::Urgent),
            ("X-Priority: 1 (Highest)", Lane::Urgent),
            ("Priority: urgent", Lane::Urgent),
            ("Precedence: bulk", Lane::Bulk),
            ("X-Priority: 5", Lane::Normal),
        ] {
            let got = submit(&format!("{header}\n\n"), "", &Source::User(1)).unwrap();
            assert_eq!(got.lane, lane, "{header}");
        }
    }
}
