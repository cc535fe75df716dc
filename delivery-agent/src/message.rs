//! message - a message as it was handed in, made fit to be sent
//!
//! All that must be mended is mended once, at submission, so that every attempt sends the same bytes:
//! line ends, long lines, fields that are missing or must not leave the host.

use std::borrow::Cow;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use worker_proto::{clock, sys};

use crate::address;

/// The longest line, without its end (RFC 5322 section 2.1.1).
pub const MAX_LINE: usize = 998;

/// Most fields of a header: each takes more memory than its bytes. A list of recipients may have a
/// field for each.
pub const MAX_FIELDS: usize = 100_000;

/// Fields that are nobody's business but the sending host's.
const PRIVATE: [&str; 4] = ["bcc", "content-length", "resent-bcc", "return-path"];

/// Fields whose value is addresses of people.
const PEOPLE: [&str; 9] = [
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "resent-from",
    "resent-sender",
    "resent-to",
    "resent-cc",
];

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
    /// Reads a message with any line ends. What does not look like a header is the body. Null bytes are
    /// left out (S10).
    #[must_use]
    pub fn parse(raw: &[u8]) -> Self {
        let (mut message, at) = Self::head(raw);
        message.body.reserve(raw.len() - at + 64);
        let mut lines = BodyLines::default();
        lines.feed(&raw[at..], &mut message.body);
        lines.end(&mut message.body);
        message
    }

    /// Reads the header alone, and not beyond [`MAX_FIELDS`]; the number is where the body begins.
    #[must_use]
    pub fn head(raw: &[u8]) -> (Self, usize) {
        let mut message = Self { fields: Vec::new(), body: Vec::new() };
        let mut lines = Lines(raw);
        // A mailbox file's separator, as some programs leave it there.
        if raw.starts_with(b"From ") || raw.starts_with(b">From ") {
            lines.next();
        }
        while !message.has_too_many_fields() {
            let before = lines.0;
            let Some(line) = lines.next() else { break };
            if let Some((name, rest)) = field_parts(&line) {
                let mut raw = Vec::new();
                // Without the blanks that may stand before the colon: a fold there would part the
                // name from it.
                push_folded(&mut raw, &[name, rest].concat());
                let name = String::from_utf8_lossy(name).to_ascii_lowercase();
                message.fields.push(Field { name, raw });
                continue;
            }
            if (line.starts_with(b" ") || line.starts_with(b"\t"))
                && let Some(last) = message.fields.last_mut()
            {
                push_folded(&mut last.raw, &line);
                continue;
            }
            // An empty line belongs to neither.
            if !line.is_empty() {
                lines.0 = before;
            }
            break;
        }
        (message, raw.len() - lines.0.len())
    }

    /// Whether the header was too long to be read to its end.
    #[must_use]
    pub const fn has_too_many_fields(&self) -> bool {
        self.fields.len() > MAX_FIELDS
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

    /// Gives every address in the fields that name people a domain (M3).
    pub fn qualify(&mut self, origin: &str) {
        for field in self.fields.iter_mut().filter(|f| PEOPLE.contains(&f.name.as_str())) {
            let Some(colon) = field.raw.iter().position(|&b| b == b':') else { continue };
            let value = field.raw.strip_suffix(b"\r\n").unwrap_or(&field.raw);
            let Some(value) = address::qualify(&value[colon + 1..], origin) else { continue };
            let text = [&field.raw[..=colon], &value].concat();
            let mut raw = Vec::with_capacity(text.len() + 2);
            // It may be too long now.
            for line in Lines(&text) {
                push_folded(&mut raw, &line);
            }
            field.raw = raw;
        }
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

/// A message as it can be sent, whatever its bytes were.
#[must_use]
pub fn clean(raw: Vec<u8>) -> Vec<u8> {
    if is_clean(&raw) { raw } else { Message::parse(&raw).to_bytes() }
}

/// Whether nothing is to be changed: lines of at most [`MAX_LINE`] bytes that end in CR LF, no null
/// byte, no other CR or LF.
fn is_clean(raw: &[u8]) -> bool {
    raw.ends_with(b"\r\n")
        && raw.split_inclusive(|&b| b == b'\n').all(|line| {
            line.strip_suffix(b"\r\n").is_some_and(|text| {
                text.len() <= MAX_LINE && !text.iter().any(|&b| b == b'\r' || b == 0)
            })
        })
}

/// A name that nothing else has, ever.
#[must_use]
pub fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Random, and not a time: clocks are coarse and are set back.
    match sys::random() {
        Ok(bytes) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
        // No kernel that this runs on refuses.
        Err(_) => format!("{:x}.{:x}.{count:x}", clock::wall().as_nanos(), process::id()),
    }
}

/// Whether a text has the form of [`unique`]: nobody can guess it.
#[must_use]
pub fn is_unique(text: &str) -> bool {
    (32..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f' | b'.'))
}

/// A new Message-ID.
#[must_use]
pub fn message_id(now: Duration, host: &str) -> String {
    format!("<{:x}.{}@{host}>", now.as_secs(), unique())
}

/// Lines of a body, made fit while they come in pieces: an overlong one is broken, null bytes are left
/// out, every end becomes CR LF, and a lone CR a blank.
#[derive(Debug, Default)]
pub struct BodyLines {
    line: Vec<u8>,
    /// CRs whose meaning depends on what follows.
    crs: usize,
}

impl BodyLines {
    /// Takes a piece; whole lines go to `out`.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let special = bytes.iter().position(|&b| matches!(b, b'\n' | b'\r' | 0));
            let (text, rest) = bytes.split_at(special.unwrap_or(bytes.len()));
            self.text(text, out);
            match rest.first() {
                Some(b'\n') => self.flush(out),
                Some(b'\r') => self.crs += 1,
                _ => {}
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
    }

    /// The body has ended, perhaps without a line end.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if !self.line.is_empty() || self.crs > 0 {
            self.flush(out);
        }
    }

    fn text(&mut self, mut text: &[u8], out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        for _ in 0..std::mem::take(&mut self.crs) {
            self.push(b" ", out);
        }
        while !text.is_empty() {
            let room = MAX_LINE + 1 - self.line.len();
            let (head, tail) = text.split_at(room.min(text.len()));
            self.push(head, out);
            text = tail;
        }
    }

    /// Adds what fits with one byte more than a line may have.
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        self.line.extend_from_slice(piece);
        if self.line.len() > MAX_LINE {
            let cut = border(&self.line, MAX_LINE);
            out.extend_from_slice(&self.line[..cut]);
            out.extend_from_slice(b"\r\n");
            self.line.drain(..cut);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.line);
        out.extend_from_slice(b"\r\n");
        self.crs = 0;
    }
}

/// Lines without their ends: CR LF, LF, and CRs before either; a lone CR becomes a blank, so that no
/// reader can take it for a line end. Null bytes are left out.
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
        if !line.iter().any(|&b| b == b'\r' || b == 0) {
            return Some(Cow::Borrowed(line));
        }
        let kept = line.iter().filter(|&&b| b != 0);
        Some(kept.map(|&b| if b == b'\r' { b' ' } else { b }).collect())
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

/// The last place at or before `at` that is not inside a UTF-8 character.
fn border(line: &[u8], at: usize) -> usize {
    (at - 3..=at).rev().find(|&n| line[n] & 0xc0 != 0x80).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cleaned(raw: &str) -> String {
        String::from_utf8(Message::parse(raw.as_bytes()).to_bytes()).unwrap()
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
            ("A: b\0c\n\nd\0\r\0\ne\0", "A: bc\r\n\r\nd\r\ne\r\n"),
            ("From a@b Thu\nA: b\n\nFrom c\n", "A: b\r\n\r\nFrom c\r\n"),
            (
                "A: b\n c\nnot: a field? yes\nno field\n",
                "A: b\r\n c\r\nnot: a field? yes\r\n\r\nno field\r\n",
            ),
        ] {
            assert_eq!(cleaned(raw), want, "{raw:?}");
        }
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
        let mut message = Message::parse(raw.as_bytes());
        assert!(message.is_resent());
        assert_eq!(message.values("Bcc"), ["secret@x\tand@y"]);
        message.drop_private();
        message.complete("f@x", "now", "<id@x>");
        message.prepend("Received", "by h;\r\n\tnow\nX-Injected: y");
        let want = "Received: by h;\r\n\tnow X-Injected: y\r\nTo: a@b\r\ndate: mine\r\nFrom: f@x\r\n\
                    Message-ID: <id@x>\r\n\r\nx\r\n";
        assert_eq!(String::from_utf8(message.to_bytes()).unwrap(), want);
    }

    /// Relays refuse `From: root`, as cron writes it.
    #[test]
    fn m3_people_without_a_domain_get_one() {
        let long = "x".repeat(980);
        let raw =
            format!("From: root (Cron Daemon)\nSubject: root\nCc: {long},\n b, c@x\n\nTo: root\n");
        let mut message = Message::parse(raw.as_bytes());
        message.qualify("o.example");
        let text = String::from_utf8(message.to_bytes()).unwrap();
        assert!(text.starts_with("From: root@o.example (Cron Daemon)\r\nSubject: root\r\nCc: x"));
        assert!(text.ends_with(",\r\n b@o.example, c@x\r\n\r\nTo: root\r\n"), "{text}");
        assert!(text.lines().all(|line| line.len() <= MAX_LINE));
    }

    #[test]
    fn message_ids_differ() {
        let at = Duration::from_secs(1);
        assert_ne!(message_id(at, "h"), message_id(at, "h"));
    }

    #[test]
    fn a_fold_does_not_part_a_name_from_its_colon() {
        let raw = format!("A :{}\r\n\r\nb\r\n", "x".repeat(1200));
        let once = Message::parse(raw.as_bytes()).to_bytes();
        assert!(once.starts_with(b"A:xxx"));
        assert_eq!(Message::parse(&once).to_bytes(), once);
    }

    proptest! {
        #[test]
        fn what_leaves_is_clean_and_stays_so(
            raw in prop::collection::vec(prop::sample::select(b"A:b \t\r\n.\0\xc3\xa4".to_vec()), 0..300),
            long in 0_usize..3000,
            step in 1_usize..1200,
        ) {
            let raw = [raw, vec![b'x'; long], b"\nend".to_vec()].concat();
            let once = Message::parse(&raw).to_bytes();
            for (i, &b) in once.iter().enumerate() {
                prop_assert!(b != b'\n' || once[i - 1] == b'\r');
                prop_assert!(b != b'\r' || once[i + 1] == b'\n');
            }
            for line in once.split(|&b| b == b'\n') {
                prop_assert!(line.len() <= MAX_LINE + 1);
            }
            prop_assert!(is_clean(&once));
            prop_assert_eq!(&Message::parse(&once).to_bytes(), &once);
            // In pieces as at once.
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            for (step, out) in [(raw.len(), &mut whole), (step, &mut pieces)] {
                let mut lines = BodyLines::default();
                raw.chunks(step).for_each(|piece| lines.feed(piece, out));
                lines.end(out);
            }
            prop_assert_eq!(whole, pieces);
        }
    }
}
