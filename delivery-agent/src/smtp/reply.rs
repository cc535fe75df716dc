//! reply - a server's answer, line by line, as bytes
//!
//! Replies need not be UTF-8 and may come in any pieces. A reply is handed out when it is whole: it
//! is never judged by its first line. What breaks the grammar or the limits ends the session, because
//! nobody can tell any more which answer belongs to which command.

use std::fmt;

/// Longest line, without its end.
pub const MAX_LINE: usize = 2048;
/// Most lines of one reply.
pub const MAX_LINES: usize = 64;

/// A whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    lines: Vec<Vec<u8>>,
}

impl Reply {
    /// The code: 200 to 599.
    #[must_use]
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// 2xx.
    #[must_use]
    pub const fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 5xx.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// Whether a login is asked for: the relay's setting, not the message, is at fault (RFC 4954
    /// section 6).
    #[must_use]
    pub const fn wants_login(&self) -> bool {
        matches!(self.code, 530 | 534 | 535 | 538)
    }

    /// The text of each line, behind code and separator.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(Vec::as_slice)
    }
}

impl fmt::Display for Reply {
    /// The reply in one line: the code, then the text of all lines; what cannot be shown is `?`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        for line in self.lines.iter().filter(|l| !l.is_empty()) {
            write!(f, " {}", printable(line))?;
        }
        Ok(())
    }
}

/// Text from the network, fit for a log line: lossy UTF-8 without control characters.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// What a server sent was no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadReply {
    /// A line was longer than [`MAX_LINE`].
    LongLine,
    /// There were more lines than [`MAX_LINES`].
    ManyLines,
    /// Two lines of one reply had different codes.
    CodesDiffer(u16, u16),
    /// A line did not begin with a code.
    NoCode(String),
}

impl fmt::Display for BadReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LongLine => write!(f, "reply line longer than {MAX_LINE} bytes"),
            Self::ManyLines => write!(f, "reply of more than {MAX_LINES} lines"),
            Self::CodesDiffer(a, b) => write!(f, "codes {a} and {b} in one reply"),
            Self::NoCode(line) => write!(f, "not an SMTP reply: \"{line}\""),
        }
    }
}

/// Puts replies together from pieces.
#[derive(Debug, Default)]
pub struct ReplyReader {
    line: Vec<u8>,
    code: u16,
    lines: Vec<Vec<u8>>,
}

impl ReplyReader {
    /// Takes bytes up to the end of a reply; says how many it took, and the reply when it is whole.
    /// Call it again with the rest.
    ///
    /// # Errors
    /// The bytes are no reply; the reader is of no use afterwards.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Option<Reply>), BadReply> {
        let mut taken = 0;
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            taken += piece.len();
            // One more for the CR that is not part of the line.
            if self.line.len() + piece.len() > MAX_LINE + 2 {
                return Err(BadReply::LongLine);
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n")
                && let Some(reply) = self.end_of_line()?
            {
                return Ok((taken, Some(reply)));
            }
        }
        Ok((taken, None))
    }

    fn end_of_line(&mut self) -> Result<Option<Reply>, BadReply> {
        let mut line = std::mem::take(&mut self.line);
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.len() > MAX_LINE {
            return Err(BadReply::LongLine);
        }
        let Some((code, last, text)) = split(&line) else {
            line.truncate(80);
            return Err(BadReply::NoCode(printable(&line)));
        };
        if !self.lines.is_empty() && code != self.code {
            return Err(BadReply::CodesDiffer(self.code, code));
        }
        if self.lines.len() == MAX_LINES {
            return Err(BadReply::ManyLines);
        }
        self.code = code;
        self.lines.push(text.to_vec());
        let whole = last.then(|| Reply { code, lines: std::mem::take(&mut self.lines) });
        Ok(whole)
    }
}

/// Code, whether it is the last line, and the text.
fn split(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (code, rest) = line.split_first_chunk::<3>()?;
    if !(b'2'..=b'5').contains(&code[0]) || !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = code.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
    match rest.split_first() {
        None => Some((code, true, rest)),
        Some((b' ', text)) => Some((code, true, text)),
        Some((b'-', text)) => Some((code, false, text)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Vec<String>, BadReply> {
        let mut reader = ReplyReader::default();
        let mut rest = bytes;
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let (taken, reply) = reader.feed(rest)?;
            rest = &rest[taken..];
            replies.extend(reply.map(|r| r.to_string()));
        }
        Ok(replies)
    }

    #[test]
    fn s4_replies_are_bytes_with_limits() {
        let long_ok = [b"250 ".as_slice(), &[b'x'; MAX_LINE - 4], b"\r\n"].concat();
        let long_bad = [b"250 ".as_slice(), &[b'x'; MAX_LINE - 3], b"\r\n"].concat();
        let endless = vec![b'2'; MAX_LINE + 3];
        let many_ok = [b"250-a\r\n".repeat(MAX_LINES - 1), b"250 a\n".to_vec()].concat();
        let many_bad = [b"250-a\r\n".repeat(MAX_LINES), b"250 a\r\n".to_vec()].concat();
        assert_eq!(read(b"220 hi\r\n"), Ok(vec!["220 hi".to_owned()]));
        assert_eq!(read(b"220 hi\n"), Ok(vec!["220 hi".to_owned()]));
        assert_eq!(read(b"250\r\n"), Ok(vec!["250".to_owned()]));
        assert_eq!(read(b"250-a\r\n250-\r\n250 b\r\n"), Ok(vec!["250 a b".to_owned()]));
        assert_eq!(read(b"250 a\r\n354 b\r\n").map(|r| r.len()), Ok(2), "pipelined replies");
        assert_eq!(
            read(b"550 Empf\xe4nger\x07 unbekannt\r\n"),
            Ok(vec!["550 Empf\u{fffd}nger? unbekannt".to_owned()]),
            "Latin-1"
        );
        assert_eq!(read(&long_ok).map(|r| r.len()), Ok(1));
        assert_eq!(read(&many_ok).map(|r| r.len()), Ok(1));
        assert_eq!(read(&long_bad), Err(BadReply::LongLine));
        assert_eq!(read(&endless), Err(BadReply::LongLine));
        assert_eq!(read(&many_bad), Err(BadReply::ManyLines));
        assert_eq!(read(b"250-a\r\n251 b\r\n"), Err(BadReply::CodesDiffer(250, 251)));
        for garbage in [
            "hello\r\n",
            "25\r\n",
            "2500 a\r\n",
            "25x a\r\n",
            "150 a\r\n",
            "650 a\r\n",
            "\r\n",
            " 250 a\r\n",
        ] {
            let got = read(garbage.as_bytes());
            assert!(matches!(got, Err(BadReply::NoCode(_))), "{garbage:?}");
        }
    }

    proptest! {
        #[test]
        fn s4_splits_make_no_difference(
            texts in prop::collection::vec("[ -~]{0,20}", 1..5),
            cuts in prop::collection::vec(1_usize..9, 1..60),
        ) {
            let mut wire = Vec::new();
            for (i, text) in texts.iter().enumerate() {
                let sep = if i + 1 == texts.len() { ' ' } else { '-' };
                wire.extend_from_slice(format!("250{sep}{text}\r\n").as_bytes());
            }
            wire.extend_from_slice(b"354 go\r\n");
            let mut reader = ReplyReader::default();
            let mut replies = Vec::new();
            let mut rest = wire.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let n = (*cuts.next().unwrap()).min(rest.len());
                let mut piece = &rest[..n];
                rest = &rest[n..];
                while !piece.is_empty() {
                    let (taken, reply) = reader.feed(piece).unwrap();
                    piece = &piece[taken..];
                    replies.extend(reply);
                }
            }
            prop_assert_eq!(replies.len(), 2);
            let lines: Vec<_> = replies[0].lines().map(<[u8]>::to_vec).collect();
            let sent: Vec<_> = texts.iter().map(|t| t.clone().into_bytes()).collect();
            prop_assert_eq!(lines, sent);
            prop_assert_eq!(replies[1].code(), 354);
        }

        #[test]
        fn s4_garbage_never_panics_nor_grows(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let mut reader = ReplyReader::default();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                match reader.feed(rest) {
                    Ok((taken, _)) => rest = &rest[taken..],
                    Err(_) => break,
                }
                prop_assert!(reader.line.len() <= MAX_LINE + 2);
            }
        }
    }
}
