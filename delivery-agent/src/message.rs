//! message - a message as it was handed in, made fit to be sent
//!
//! All that must be mended is mended once, at submission, so that every attempt sends the same bytes:
//! line ends, long lines, fields that are missing or must not leave the host.

use std::borrow::Cow;
use std::fmt;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The longest line, without its end (RFC 5322 section 2.1.1).
pub const MAX_LINE: usize = 998;

/// Fields that are nobody's business but the sending host's.
const PRIVATE: [&str; 4] = ["bcc", "content-length", "resent-bcc", "return-path"];

/// A message that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadMessage {
    /// It holds a null byte.
    Nul,
}

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nul => f.write_str("the message holds a null byte"),
        }
    }
}

/// A field of the header with its line end, folded or not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    /// In lower case.
    name: String,
    raw: Vec<u8>,
}

/// A message in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    fields: Vec<Field>,
    body: Vec<u8>,
}

impl Message {
    /// Reads a message with any line ends. What does not look like a header is the body.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn parse(raw: &[u8]) -> Result<Self, BadMessage> {
        if raw.contains(&0) {
            return Err(BadMessage::Nul);
        }
        let mut message = Self { fields: Vec::new(), body: Vec::with_capacity(raw.len() + 64) };
        let mut lines = Lines(raw).peekable();
        // A mailbox file's separator, as some programs leave it there.
        if lines.peek().is_some_and(|l| l.starts_with(b"From ") || l.starts_with(b">From ")) {
            lines.next();
        }
        while let Some(line) = lines.peek() {
            if let Some((name, rest)) = field_parts(line) {
                let mut raw = Vec::new();
                // Without the blanks that may stand before the colon: a fold there would part the
                // name from it.
                push_folded(&mut raw, &[name, rest].concat());
                let name = String::from_utf8_lossy(name).to_ascii_lowercase();
                message.fields.push(Field { name, raw });
            } else if line.starts_with(b" ") || line.starts_with(b"\t") {
                let Some(last) = message.fields.last_mut() else { break };
                push_folded(&mut last.raw, line);
            } else {
                break;
            }
            lines.next();
        }
        if lines.peek().is_some_and(|l| l.is_empty()) {
            lines.next();
        }
        for line in lines {
            push_broken(&mut message.body, &line);
        }
        Ok(message)
    }

    /// Whether the header has a field.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|f| f.name.eq_ignore_ascii_case(name))
    }

    /// How often the header has a field.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).count()
    }

    /// The values of a field, unfolded.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<String> {
        let value = |f: &Field| {
            let text = String::from_utf8_lossy(&f.raw);
            let value = text.split_once(':').map_or("", |(_, v)| v);
            value.replace("\r\n", "").trim().to_owned()
        };
        self.fields.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).map(value).collect()
    }

    /// Whether the message was sent on by hand (RFC 5322 section 3.6.6).
    #[must_use]
    pub fn is_resent(&self) -> bool {
        self.fields.iter().any(|f| f.name.starts_with("resent-"))
    }

    /// Removes what must not leave the host.
    pub fn drop_private(&mut self) {
        self.fields.retain(|f| !PRIVATE.contains(&f.name.as_str()));
    }

    /// Puts a field at the end of the header. Line ends in the value are its folds.
    pub fn append(&mut self, name: &str, value: &str) {
        self.fields.push(field(name, value));
    }

    /// Puts a field at the top of the header.
    pub fn prepend(&mut self, name: &str, value: &str) {
        self.fields.insert(0, field(name, value));
    }

    /// Adds From, Date and Message-ID where they are missing (M3).
    pub fn complete(&mut self, from: &str, date: &str, message_id: &str) {
        for (name, value) in [("From", from), ("Date", date), ("Message-ID", message_id)] {
            if !self.has(name) {
                self.append(name, value);
            }
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let header: usize = self.fields.iter().map(|f| f.raw.len()).sum();
        let mut bytes = Vec::with_capacity(header + 2 + self.body.len());
        for field in &self.fields {
            bytes.extend_from_slice(&field.raw);
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A new Message-ID.
#[must_use]
pub fn message_id(now: Duration, host: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let (seconds, nanos) = (now.as_secs(), now.subsec_nanos());
    format!("<{seconds:x}.{nanos:x}.{:x}.{count:x}@{host}>", process::id())
}

/// Lines without their ends: CR LF, LF, and CRs before either; a lone CR becomes a blank, so that no
/// reader can take it for a line end.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Cow<'a, [u8]>;

    fn next(&mut self) -> Option<Cow<'a, [u8]>> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|&b| b == b'\n');
        let (line, rest) = match end {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (self.0, &self.0[self.0.len()..]),
        };
        self.0 = rest;
        let cut = line.iter().rposition(|&b| b != b'\r').map_or(0, |at| at + 1);
        let line = &line[..cut];
        if !line.contains(&b'\r') {
            return Some(Cow::Borrowed(line));
        }
        Some(line.iter().map(|&b| if b == b'\r' { b' ' } else { b }).collect())
    }
}

/// The name, and the colon with what follows, when the line begins a field.
fn field_parts(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&b| b == b':')?;
    let name = line[..colon].trim_ascii_end();
    let plain = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
    // A name that does not fit a line with its colon is none.
    (plain && name.len() < MAX_LINE - 1).then(|| (name, &line[colon..]))
}

fn field(name: &str, value: &str) -> Field {
    let mut raw = Vec::new();
    for (number, part) in value.split("\r\n").enumerate() {
        let part: String = part.chars().map(|c| if is_unfit(c) { ' ' } else { c }).collect();
        let line = match number {
            0 => format!("{name}: {part}"),
            _ if part.starts_with(['\t', ' ']) => part,
            _ => format!("\t{part}"),
        };
        push_folded(&mut raw, line.as_bytes());
    }
    Field { name: name.to_ascii_lowercase(), raw }
}

fn is_unfit(c: char) -> bool {
    c.is_control() && c != '\t'
}

/// A line of the header: an overlong one is folded at a blank, or broken where there is none.
fn push_folded(out: &mut Vec<u8>, mut line: &[u8]) {
    while line.len() > MAX_LINE {
        let is_blank = |&b: &u8| b == b' ' || b == b'\t';
        // Not at the blank it begins with, or nothing would be gained.
        let blank = line[1..=MAX_LINE].iter().rposition(is_blank).map(|at| at + 1);
        let at = blank.filter(|&at| !line[..at].iter().all(is_blank));
        let cut = at.unwrap_or_else(|| border(line, MAX_LINE - 1));
        out.extend_from_slice(&line[..cut]);
        out.extend_from_slice(b"\r\n");
        if at.is_none() {
            out.push(b' ');
        }
        line = &line[cut..];
    }
    out.extend_from_slice(line);
    out.extend_from_slice(b"\r\n");
}

/// A line of the body: an overlong one is broken.
fn push_broken(out: &mut Vec<u8>, mut line: &[u8]) {
    while line.len() > MAX_LINE {
        let (head, tail) = line.split_at(border(line, MAX_LINE));
        out.extend_from_slice(head);
        out.extend_from_slice(b"\r\n");
        line = tail;
    }
    out.extend_from_slice(line);
    out.extend_from_slice(b"\r\n");
}

/// The last place at or before `at` that is not inside a UTF-8 character.
fn border(line: &[u8], at: usize) -> usize {
    (at - 3..=at).rev().find(|&n| line[n] & 0xc0 != 0x80).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cleaned(raw: &str) -> String {
        String::from_utf8(Message::parse(raw.as_bytes()).unwrap().to_bytes()).unwrap()
    }

    #[test]
    fn s10_line_ends_are_mended() {
        for (raw, want) in [
            ("A: b\n\nc\n", "A: b\r\n\r\nc\r\n"),
            ("A: b\r\n\r\nc", "A: b\r\n\r\nc\r\n"),
            ("A: b\r\r\n\r\nc\r\r\r\n", "A: b\r\n\r\nc\r\n"),
            ("A: b\rBcc: x\n\nc\rd\n", "A: b Bcc: x\r\n\r\nc d\r\n"),
            ("A: b\n", "A: b\r\n\r\n"),
            ("", "\r\n"),
            ("no header\nat all\n", "\r\nno header\r\nat all\r\n"),
            ("A \t: b\n\nc\n", "A: b\r\n\r\nc\r\n"),
            ("\nbody\n", "\r\nbody\r\n"),
            (" continues nothing\n", "\r\n continues nothing\r\n"),
            ("From a@b Thu\nA: b\n\nFrom c\n", "A: b\r\n\r\nFrom c\r\n"),
            (
                "A: b\n c\nnot: a field? yes\nno field\n",
                "A: b\r\n c\r\nnot: a field? yes\r\n\r\nno field\r\n",
            ),
        ] {
            assert_eq!(cleaned(raw), want, "{raw:?}");
        }
        assert_eq!(Message::parse(b"A: b\n\n\0"), Err(BadMessage::Nul));
    }

    #[test]
    fn s10_long_lines_are_folded() {
        let words = "word ".repeat(500);
        let text = cleaned(&format!("A: {words}\n\n{}\n", "\u{e4}".repeat(1500)));
        assert!(text.lines().all(|l| l.len() <= MAX_LINE));
        let (header, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(header.replace("\r\n", ""), format!("A: {words}"));
        assert_eq!(body.replace("\r\n", ""), "\u{e4}".repeat(1500));
        let solid = cleaned(&format!("A: {}\n\n", "x".repeat(3000)));
        assert!(solid.lines().all(|l| l.len() <= MAX_LINE));
    }

    #[test]
    fn m3_fields_are_added_and_dropped() {
        let raw =
            "bcc: secret@x\n\tand@y\nReturn-Path: <z>\nTo: a@b\ndate: mine\nResent-Bcc: r@x\n\nx\n";
        let mut message = Message::parse(raw.as_bytes()).unwrap();
        assert!(message.is_resent());
        assert_eq!(message.values("Bcc"), ["secret@x\tand@y"]);
        message.drop_private();
        message.complete("f@x", "now", "<id@x>");
        message.prepend("Received", "by h;\r\n\tnow\nX-Injected: y");
        let want = "Received: by h;\r\n\tnow X-Injected: y\r\nTo: a@b\r\ndate: mine\r\nFrom: f@x\r\n\
                    Message-ID: <id@x>\r\n\r\nx\r\n";
        assert_eq!(String::from_utf8(message.to_bytes()).unwrap(), want);
    }

    #[test]
    fn message_ids_differ() {
        let at = Duration::from_secs(1);
        assert_ne!(message_id(at, "h"), message_id(at, "h"));
    }

    #[test]
    fn a_fold_does_not_part_a_name_from_its_colon() {
        let raw = format!("A :{}\r\n\r\nb\r\n", "x".repeat(1200));
        let once = Message::parse(raw.as_bytes()).unwrap().to_bytes();
        assert!(once.starts_with(b"A:xxx"));
        assert_eq!(Message::parse(&once).unwrap().to_bytes(), once);
    }

    proptest! {
        #[test]
        fn what_leaves_is_clean_and_stays_so(
            raw in prop::collection::vec(prop::sample::select(b"A:b \t\r\n.\xc3\xa4".to_vec()), 0..300),
            long in 0_usize..3000,
        ) {
            let raw = [raw, vec![b'x'; long], b"\nend".to_vec()].concat();
            let once = Message::parse(&raw).unwrap().to_bytes();
            for (i, &b) in once.iter().enumerate() {
                prop_assert!(b != b'\n' || once[i - 1] == b'\r');
                prop_assert!(b != b'\r' || once[i + 1] == b'\n');
            }
            for line in once.split(|&b| b == b'\n') {
                prop_assert!(line.len() <= MAX_LINE + 1);
            }
            prop_assert_eq!(Message::parse(&once).unwrap().to_bytes(), once);
        }
    }
}
