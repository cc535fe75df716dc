//! listing - the queue for a person and for a program
//!
//! Text in mailq's form, or a JSON object a line. It says why each message waits and when it is tried
//! next. Used by qmgr, and by alertq itself while qmgr does not run.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;
use worker_proto::sys::LocalTime;

use crate::store::{MessageNo, Recipient, RecipientState, Store, StoreError, Summary};

/// What the running queue knows of a message: what it is doing, and in how many seconds it is tried.
pub type Doing<'a> = dyn Fn(MessageNo) -> (&'static str, Option<u64>) + 'a;

/// The list of an empty queue.
pub const EMPTY: &str = "Mail queue is empty\n";

/// Messages of one page: qmgr writes one between two turns, and nobody notices.
const PAGE: usize = 200;

/// A list of every queued message, page by page.
#[derive(Debug)]
pub struct Lister {
    as_json: bool,
    last: MessageNo,
    count: u64,
    bytes: u64,
    done: bool,
}

impl Lister {
    /// A list that begins with the oldest message.
    #[must_use]
    pub const fn new(as_json: bool) -> Self {
        Self { as_json, last: MessageNo(0), count: 0, bytes: 0, done: false }
    }

    /// The next page; None behind the last one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn page(&mut self, store: &Store, doing: &Doing<'_>) -> Result<Option<String>, StoreError> {
        if self.done {
            return Ok(None);
        }
        let page = store.queued(self.last, PAGE)?;
        let mut text = String::new();
        if self.count == 0 && !self.as_json && !page.is_empty() {
            text.push_str(HEAD);
        }
        for message in &page {
            let recipients = store.recipients(message.no)?;
            if self.as_json {
                let _ = writeln!(text, "{}", object(message, &recipients, doing));
            } else {
                entry(&mut text, message, &recipients, doing);
            }
            self.count += 1;
            self.bytes += message.size;
            self.last = message.no;
        }
        self.done = page.len() < PAGE;
        if self.done && !self.as_json {
            text.push_str(&self.end());
        }
        Ok(Some(text))
    }

    fn end(&self) -> String {
        if self.count == 0 {
            return EMPTY.to_owned();
        }
        let kbytes = self.bytes.div_ceil(1024);
        let plural = if self.count == 1 { "" } else { "s" };
        format!("-- {kbytes} Kbytes in {} Request{plural}.\n", self.count)
    }
}

/// Every message that has failed for a recipient and is still listed, the last first.
///
/// # Errors
/// The store cannot be read.
pub fn failed(store: &Store, as_json: bool) -> Result<String, StoreError> {
    let doing = |_| ("failed", None);
    let (mut text, mut count) = (String::new(), 0_u64);
    for message in &store.failed()? {
        let mut recipients = store.recipients(message.no)?;
        recipients.retain(|r| r.state == RecipientState::Failed);
        count += 1;
        if as_json {
            let _ = writeln!(text, "{}", object(message, &recipients, &doing));
            continue;
        }
        let ended = LocalTime::at(Duration::from_secs(message.done)).stamp();
        let sender = if message.sender.is_empty() { "MAILER-DAEMON" } else { &message.sender };
        let _ = writeln!(text, "{:12} {:8} {ended:20} {sender}", message.id, message.size);
        for recipient in recipients {
            let _ = writeln!(text, "{:42} {}\n    ({})", "", recipient.address, recipient.reply);
        }
        text.push('\n');
    }
    if as_json {
        return Ok(text);
    }
    let plural = if count == 1 { "" } else { "s" };
    Ok(format!("{text}-- {count} failed message{plural}.\n"))
}

const HEAD: &str = "-Queue ID-   --Size-- ----Arrival Time---- -Sender/Recipient-------\n";

fn entry(text: &mut String, message: &Summary, recipients: &[Recipient], doing: &Doing<'_>) {
    let (state, next) = doing(message.no);
    let mark = match state {
        "active" => '*',
        "held" => '!',
        _ => ' ',
    };
    let arrived = LocalTime::at(Duration::from_secs(message.arrived)).stamp();
    let sender = if message.sender.is_empty() { "MAILER-DAEMON" } else { &message.sender };
    let id = format!("{}{mark}", message.id);
    let _ = writeln!(text, "{id:12} {:8} {arrived:20} {sender}", message.size);
    let why = match (message.why.as_str(), next) {
        ("", None | Some(0)) => String::new(),
        ("", Some(s)) => format!("next try in {s}s"),
        (why, None) => why.to_owned(),
        (why, Some(s)) => format!("{why}; attempt {}, next try in {s}s", message.attempts + 1),
    };
    if !why.is_empty() {
        let _ = writeln!(text, "    ({why})");
    }
    for recipient in recipients.iter().filter(|r| r.state == RecipientState::Queued) {
        let _ = writeln!(text, "{:42} {}", "", recipient.address);
    }
    text.push('\n');
}

fn object(message: &Summary, recipients: &[Recipient], doing: &Doing<'_>) -> serde_json::Value {
    let (state, next) = doing(message.no);
    let recipients: Vec<_> = recipients
        .iter()
        .map(|r| json!({"address": r.address, "state": state_word(r.state), "reply": r.reply}))
        .collect();
    json!({
        "queue_id": message.id, "arrival_time": message.arrived, "message_size": message.size,
        "sender": message.sender, "origin": message.origin, "lane": message.lane,
        "state": state, "attempts": message.attempts, "next_try_in": next, "reason": message.why,
        "recipients": recipients,
    })
}

const fn state_word(state: RecipientState) -> &'static str {
    match state {
        RecipientState::Queued => "queued",
        RecipientState::Delivered => "delivered",
        RecipientState::Failed => "failed",
    }
}

/// One message, queued or ended, with the header of its bytes if they are still there. None when the
/// id is not known.
///
/// # Errors
/// The store cannot be read.
pub fn show(store: &Store, id: &str, doing: &Doing<'_>) -> Result<Option<String>, StoreError> {
    let Some(message) = store.by_id(id)? else { return Ok(None) };
    let (state, next) = doing(message.no);
    let time = |s| LocalTime::at(Duration::from_secs(s)).date_header();
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:10} {value}");
    };
    line("id", &message.id);
    line("state", if message.done > 0 { "ended" } else { state });
    line("arrived", &time(message.arrived));
    line("from", &format!("<{}> ({})", message.sender, message.origin));
    line("size", &message.size.to_string());
    line("attempts", &message.attempts.to_string());
    if message.done > 0 {
        line("ended", &time(message.done));
    } else if let Some(seconds) = next {
        line("next try", &format!("in {seconds}s"));
    }
    if !message.why.is_empty() {
        line("reason", &message.why);
    }
    for recipient in store.recipients(message.no)? {
        let reply = if recipient.reply.is_empty() {
            String::new()
        } else {
            format!(" ({})", recipient.reply)
        };
        line("to", &format!("<{}> {}{reply}", recipient.address, state_word(recipient.state)));
    }
    if let Some(body) = store.body(message.no)? {
        let end = body.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(body.len());
        let header = String::from_utf8_lossy(&body[..end]).replace("\r\n", "\n");
        let _ = writeln!(text, "\n{header}");
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Accepted;
    use crate::wire::{Lane, Submission};

    fn list(store: &Store, doing: &Doing<'_>, as_json: bool) -> Result<String, StoreError> {
        let mut lister = Lister::new(as_json);
        let mut text = String::new();
        while let Some(page) = lister.page(store, doing)? {
            text.push_str(&page);
        }
        Ok(text)
    }

    fn submission(body: &[u8]) -> Submission {
        Submission {
            sender: String::new(),
            recipients: vec!["b@y".to_owned()],
            origin: "uid 0".to_owned(),
            lane: Lane::Normal,
            token: String::new(),
            body: body.to_vec(),
        }
    }

    #[test]
    fn q12_a_long_list_comes_in_pages_and_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path(), 0).unwrap();
        let submission = submission(b"x\r\n");
        for _ in 0..2 * PAGE {
            store.accept(&submission, 100).unwrap();
        }
        store.commit().unwrap();
        let mut lister = Lister::new(true);
        let mut lines = Vec::new();
        while let Some(page) = lister.page(&store, &|_| ("queued", None)).unwrap() {
            lines.push(page.lines().count());
        }
        assert_eq!(lines, [PAGE, PAGE, 0]);
        let text = list(&store, &|_| ("queued", None), false).unwrap();
        assert_eq!(text.matches("-Queue ID-").count(), 1);
        assert!(text.ends_with(&format!(" in {} Requests.\n", 2 * PAGE)), "{text}");
    }

    #[test]
    fn q13_the_list_says_why_and_when() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path(), 0).unwrap();
        assert_eq!(list(&store, &|_| ("queued", None), false).unwrap(), "Mail queue is empty\n");
        let submission = submission(b"Subject: x\r\n\r\ny\r\n");
        let Accepted { no, id, .. } = store.accept(&submission, 100).unwrap();
        store.defer(no, 1, 130, "451 later", false).unwrap();
        store.commit().unwrap();
        let text = list(&store, &|_| ("deferred", Some(30)), false).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with(&id) && lines[1].ends_with(" MAILER-DAEMON"), "{text}");
        assert_eq!(lines[2], "    (451 later; attempt 2, next try in 30s)");
        assert!(lines[3].ends_with("  b@y"));
        assert_eq!(lines[5], "-- 1 Kbytes in 1 Request.");
        let json = list(&store, &|_| ("deferred", Some(30)), true).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["next_try_in"], 30);
        assert_eq!(value["recipients"][0]["address"], "b@y");
        let shown = show(&store, &id, &|_| ("deferred", Some(30))).unwrap().unwrap();
        assert!(shown.contains("to         <b@y> queued\n\nSubject: x\n"), "{shown}");
        assert_eq!(show(&store, "none", &|_| ("", None)).unwrap(), None);
    }
}
