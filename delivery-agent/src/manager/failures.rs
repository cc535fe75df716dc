//! failures - what bounced or expired: told to a person, and sent again when an operator asks (R5)
//!
//! Failures gather for a moment and are told in one notice, an hour at least after the one before. A
//! notice is never about a notice. What is not told when qmgr ends is still listed.

use std::fmt::Write;
use std::time::Duration;

use mio::Token;
use worker_proto::clock::{self, Time};
use worker_proto::sys::LocalTime;

use super::{Manager, Offered};
use crate::message;
use crate::store::{MessageNo, RecipientState, StoreError, Summary};
use crate::wire::{Lane, Submission};

/// How long failures gather before the first notice, and between two.
const GATHERING: Duration = Duration::from_secs(60);
const BETWEEN: Duration = Duration::from_secs(3600);
/// A notice lists this many; the rest is counted.
const MOST_LISTED: usize = 1000;
/// Where a notice comes from, by which it is known.
const ORIGIN: &str = "notice of qmgr";

/// What is to be told.
#[derive(Debug, Default)]
pub(super) struct Notices {
    lines: Vec<String>,
    left_out: usize,
    /// When the next notice may go.
    next: Time,
}

impl Notices {
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.lines.is_empty()).then_some(self.next)
    }

    /// A recipient has failed.
    pub(super) fn add(&mut self, now: Time, origin: &str, line: String) {
        if origin == ORIGIN {
            return;
        }
        if self.lines.is_empty() {
            self.next = self.next.max(now + GATHERING);
        }
        if self.lines.len() < MOST_LISTED {
            self.lines.push(line);
        } else {
            self.left_out += 1;
        }
    }

    /// The text of the notice that is due; None when none is.
    fn take(&mut self, now: Time) -> Option<String> {
        if self.lines.is_empty() || now < self.next {
            return None;
        }
        self.next = now + BETWEEN;
        let lines = std::mem::take(&mut self.lines);
        let left_out = std::mem::take(&mut self.left_out);
        let mut text = String::from(
            "These messages could not be delivered. They are listed by `alertq list --failed`;\r\n\
             `alertq requeue ID` sends one again.\r\n\r\n",
        );
        for line in lines {
            // Others have written parts of it.
            let clean = |c: char| if c.is_control() || !c.is_ascii() { '?' } else { c };
            let line: String = line.chars().map(clean).take(900).collect();
            let _ = write!(text, "{line}\r\n");
        }
        if left_out > 0 {
            let _ = write!(text, "and {left_out} more\r\n");
        }
        Some(text)
    }
}

impl Manager {
    /// Hands in the notice that is due, before the turn's commit.
    pub(super) fn give_notice(&mut self, now: Time) {
        let Some(text) = self.notices.take(now) else { return };
        let to = self.params.error_notice_recipient.clone();
        if to.is_empty() {
            return;
        }
        let recipients = self.local.complete(&[to]);
        let (wall, host) = (clock::wall(), &self.common.myhostname);
        let date = LocalTime::at(wall).date_header();
        let head = [
            format!("From: Mail Delivery System <MAILER-DAEMON@{host}>"),
            format!("To: {}", recipients.join(", ")),
            "Subject: Undelivered mail".to_owned(),
            format!("Date: {date}"),
            format!("Message-ID: {}", message::message_id(wall, host)),
            "Auto-Submitted: auto-generated".to_owned(),
        ];
        let body = format!("{}\r\n\r\n{text}", head.join("\r\n")).into_bytes();
        let (sender, origin) = (String::new(), ORIGIN.to_owned());
        let (lane, token) = (Lane::Normal, String::new());
        self.hand_in(now, Submission { sender, recipients, origin, lane, token, body }, None);
    }

    /// A message of qmgr's own, or one that takes an ended one's place once it is on disk.
    fn hand_in(&mut self, now: Time, mut submission: Submission, replaces: Option<MessageNo>) {
        let result = self.accept(now, &submission);
        let size = std::mem::take(&mut submission.body).len();
        self.offered.push((Token(0), Offered { result, submission, size, replaces }));
    }

    /// Sends a message that has ended again to those it has failed for; true if there are any.
    pub(super) fn requeue_failed(
        &mut self,
        now: Time,
        message: &Summary,
    ) -> Result<bool, StoreError> {
        let recipients = self.store.recipients(message.no)?;
        let failed = recipients.into_iter().filter(|r| r.state == RecipientState::Failed);
        let recipients: Vec<_> = failed.map(|r| r.address).collect();
        let Some(body) = self.store.body(message.no)?.filter(|_| !recipients.is_empty()) else {
            return Ok(false);
        };
        let (sender, lane, token) = (message.sender.clone(), message.lane, String::new());
        let origin = format!("requeue of {}", message.id);
        let submission = Submission { sender, recipients, origin, lane, token, body };
        self.hand_in(now, submission, Some(message.no));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn r5_one_notice_an_hour_and_none_about_a_notice() {
        let mut notices = Notices::default();
        notices.add(at(0), ORIGIN, "Y: to=<a@x>: 550 no".to_owned());
        assert_eq!(notices.deadline(), None);
        notices.add(at(0), "uid 0", "X: to=<a@x>: 550 n\u{e4}in\r\n".to_owned());
        assert_eq!(notices.take(at(59)), None);
        let text = notices.take(notices.deadline().unwrap()).unwrap();
        assert!(text.ends_with("\r\n\r\nX: to=<a@x>: 550 n?in??\r\n"), "{text}");
        for n in 0..MOST_LISTED + 5 {
            notices.add(at(100), "uid 0", format!("{n}"));
        }
        assert_eq!(notices.take(at(3600)), None);
        assert!(notices.take(at(3661)).unwrap().ends_with("and 5 more\r\n"));
        assert_eq!(notices.take(at(99_999)), None);
    }
}
