//! smtp - a server's replies, and messages in their wire form

use delivery_agent::smtp::dot::{Unstuffer, stuff};
use delivery_agent::smtp::reply::{BadReply, MAX_LINE, MAX_LINES, Reply, ReplyReader};

use super::pieces;

/// Replies are the same in whatever pieces they come, keep their limits, and are one line in the log;
/// one that is written as it was read is read as the same.
///
/// # Panics
/// One of these does not hold.
pub fn reply(bytes: &[u8]) {
    let (whole, pieces) = pieces(bytes);
    let at_once = read([whole].into_iter());
    assert_eq!(at_once, read(pieces));
    one_code_each(whole);
    for reply in at_once.0 {
        assert!((200..600).contains(&reply.code()));
        assert!((1..=MAX_LINES).contains(&reply.lines().count()));
        assert!(reply.lines().all(|line| line.len() <= MAX_LINE && !line.contains(&b'\n')));
        assert!(!reply.to_string().contains(char::is_control));
        let written = write(&reply);
        assert_eq!(read([written.as_slice()].into_iter()), (vec![reply], None));
    }
}

/// The replies in some pieces, up to the first that is none.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Reply>, Option<BadReply>) {
    let mut reader = ReplyReader::default();
    let mut replies = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            match reader.feed(piece) {
                Ok((taken, reply)) => {
                    assert!(taken > 0 && taken <= piece.len(), "it makes progress");
                    assert!(reply.is_some() || taken == piece.len());
                    replies.extend(reply);
                    piece = &piece[taken..];
                }
                Err(bad) => {
                    assert!(!bad.to_string().contains(char::is_control));
                    return (replies, Some(bad));
                }
            }
        }
    }
    (replies, None)
}

/// Every line of a reply has its code, and all but the last say that another follows.
fn one_code_each(bytes: &[u8]) {
    let (mut reader, mut rest) = (ReplyReader::default(), bytes);
    while let Ok((taken, Some(reply))) = reader.feed(rest) {
        let code = reply.code().to_string();
        let (own, behind) = rest.split_at(taken);
        let lines: Vec<_> = own.split_inclusive(|&b| b == b'\n').collect();
        assert_eq!(lines.len(), reply.lines().count());
        assert!(lines.iter().all(|line| line.starts_with(code.as_bytes())));
        let more = lines.iter().map(|line| line[3] == b'-');
        assert!(more.enumerate().all(|(at, more)| more == (at + 1 < lines.len())));
        rest = behind;
    }
}

fn write(reply: &Reply) -> Vec<u8> {
    let mut out = Vec::new();
    let last = reply.lines().count() - 1;
    for (at, line) in reply.lines().enumerate() {
        let separator = if at == last { ' ' } else { '-' };
        out.extend_from_slice(format!("{}{separator}", reply.code()).as_bytes());
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A message comes back whole from its wire form, and ends where it ends; any bytes are taken apart
/// the same in whatever pieces they come.
///
/// # Panics
/// One of these does not hold.
pub fn dot(bytes: &[u8]) {
    let (whole, parts) = pieces(bytes);
    let mut wire = Vec::new();
    stuff(whole, &mut wire);
    let inside = |at: usize| at + b"\r\n.\r\n".len() < wire.len();
    let ends = wire.windows(5).enumerate().filter(|(_, five)| five == b"\r\n.\r\n");
    assert!(ends.into_iter().all(|(at, _)| !inside(at)), "an end inside the message");
    let bare = |at: usize| match wire[at] {
        b'\n' => at == 0 || wire[at - 1] != b'\r',
        b'\r' => wire.get(at + 1) != Some(&b'\n'),
        _ => false,
    };
    assert!(!(0..wire.len()).any(bare), "a bare line end in the wire form");
    wire.extend_from_slice(b"QUIT\r\n");
    let (message, rest, done) = unstuff([wire.as_slice()].into_iter());
    assert!(done && rest == b"QUIT\r\n");
    assert_eq!(message, with_line_ends(whole));
    assert_eq!(unstuff(parts), unstuff([whole].into_iter()));
}

/// The message in some pieces, what follows it, and whether it has ended.
fn unstuff<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<u8>, bool) {
    let (mut unstuffer, mut message, mut rest) = (Unstuffer::default(), Vec::new(), Vec::new());
    let mut done = false;
    for piece in pieces {
        let (taken, now_done) = unstuffer.feed(piece, &mut message);
        assert!(now_done >= done && (now_done || taken == piece.len()));
        done = now_done;
        rest.extend_from_slice(&piece[taken..]);
    }
    (message, rest, done)
}

/// Every line of a message ends in CR LF.
fn with_line_ends(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = message.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' => {
                bytes.next_if_eq(&b'\n');
                out.extend_from_slice(b"\r\n");
            }
            b'\n' => out.extend_from_slice(b"\r\n"),
            other => out.push(other),
        }
    }
    if !out.is_empty() && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}
