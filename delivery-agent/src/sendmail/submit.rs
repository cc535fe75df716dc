//! submit - hands a message to smtpd on `public/submit`, whole or not at all
//!
//! Reads and writes at the same time, so that neither side waits for the other however many recipients
//! there are; each step has a deadline that progress moves.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use worker_proto::files;
use worker_proto::sys::errno_text;

use super::spool::Spool;
use super::{EX_DATAERR, EX_TEMPFAIL, EX_UNAVAILABLE, Failure, SUBMIT};
use crate::message;
use crate::smtp::reply::{Reply, ReplyReader};

/// How long smtpd may take to greet: it is there at once, or fails at its start, or is too busy.
pub(super) const GREETING: Duration = Duration::from_secs(3);
/// How long it may be silent later, and before it has said that the message is on disk.
const SILENCE: Duration = Duration::from_secs(60);
const STORING: Duration = Duration::from_secs(150);

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is on disk.
    Taken,
    /// It is refused, for all recipients.
    Refused(Failure),
    /// Nothing was refused and nothing was taken, as far as is known; why.
    Unavailable(String),
}

/// Hands it over.
pub(super) fn submit(hostname: &str, spool: &Spool) -> Verdict {
    match attempt(hostname, spool) {
        Ok(()) => Verdict::Taken,
        Err(verdict) => verdict,
    }
}

fn attempt(hostname: &str, spool: &Spool) -> Result<(), Verdict> {
    let stream =
        files::connect(Path::new(SUBMIT)).and_then(|s| s.set_nonblocking(true).map(|()| s));
    let stream = stream.map_err(|e| unavailable(&format!("connect: {}", errno_text(&e))))?;
    let mut line = Line::new(stream);
    positive(&line.ask(String::new(), 1, GREETING, "the greeting")?)?;
    let hello = line.ask(format!("EHLO {hostname}\r\n"), 1, SILENCE, "the answer to EHLO")?;
    positive(&hello)?;
    let has =
        |what: &[u8]| hello.iter().any(|reply| reply.lines().any(|l| l.eq_ignore_ascii_case(what)));
    if !has(b"CHUNKING") {
        return Err(unavailable("CHUNKING is not offered"));
    }
    let count = spool.recipients().len() + 1;
    let answers =
        line.ask(envelope(spool, has(b"XTOKEN")), count, SILENCE, "the answers to the envelope")?;
    // It is for all recipients or for none: who is told of a failure sends it again to all.
    if let Some(number) = answers.iter().position(Reply::is_permanent) {
        let reply = &answers[number];
        let who = number.checked_sub(1).and_then(|n| spool.recipients().get(n));
        let who = who.map_or_else(String::new, |address| format!("{address}: "));
        return Err(Verdict::Refused(Failure::new(status(reply), format!("{who}{reply}"))));
    }
    positive(&answers)?;
    let answer = line.send(spool)?;
    // The next one needs no answer.
    line.stream.write_all(b"QUIT\r\n").ok();
    match answer.code() {
        200..=299 => Ok(()),
        // The disk is full: the drop directory is on the same one.
        452 => Err(Verdict::Refused(Failure::new(EX_TEMPFAIL, answer))),
        500.. => Err(Verdict::Refused(Failure::new(status(&answer), answer))),
        _ => Err(unavailable(&answer.to_string())),
    }
}

fn status(reply: &Reply) -> u8 {
    if reply.code() == 552 { EX_UNAVAILABLE } else { EX_DATAERR }
}

fn envelope(spool: &Spool, with_token: bool) -> String {
    let (sender, size) = (spool.sender(), spool.size());
    let is_ascii = sender.is_ascii() && spool.recipients().iter().all(|r| r.is_ascii());
    let utf8 = if is_ascii { "" } else { " SMTPUTF8" };
    // When the answer is lost, the message goes into the drop directory, and must not be sent twice.
    let token = match with_token && message::is_unique(spool.token()) {
        true => format!(" XTOKEN={}", spool.token()),
        false => String::new(),
    };
    let mut text = format!("MAIL FROM:<{sender}> SIZE={size} BODY=8BITMIME{utf8}{token}\r\n");
    for recipient in spool.recipients() {
        let _ = write!(text, "RCPT TO:<{recipient}>\r\n");
    }
    text
}

fn unavailable(why: &str) -> Verdict {
    Verdict::Unavailable(format!("{SUBMIT}: {why}"))
}

fn positive(replies: &[Reply]) -> Result<(), Verdict> {
    match replies.iter().find(|reply| !reply.is_positive()) {
        Some(reply) => Err(unavailable(&reply.to_string())),
        None => Ok(()),
    }
}

struct Line {
    stream: UnixStream,
    reader: ReplyReader,
    replies: VecDeque<Reply>,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        Self { stream, reader: ReplyReader::default(), replies: VecDeque::new() }
    }

    fn ask(
        &mut self,
        text: String,
        replies: usize,
        patience: Duration,
        what: &str,
    ) -> Result<Vec<Reply>, Verdict> {
        let mut text = Some(text.into_bytes());
        let more = |out: &mut Vec<u8>| {
            out.extend(text.take().unwrap_or_default());
            Ok(())
        };
        self.exchange(more, replies, patience, what)
    }

    /// The message; its answer.
    fn send(&mut self, spool: &Spool) -> Result<Reply, Verdict> {
        let mut at = None;
        let more = |out: &mut Vec<u8>| {
            let Some(from) = at else {
                at = Some(0);
                out.extend_from_slice(format!("BDAT {} LAST\r\n", spool.size()).as_bytes());
                return Ok(());
            };
            spool.read(from, out)?;
            at = Some(from + out.len() as u64);
            Ok(())
        };
        let answers = self.exchange(more, 1, STORING, "the answer to the message")?;
        answers.into_iter().next().ok_or_else(|| unavailable("no answer"))
    }

    /// Writes what `more` gives, until it gives nothing, and reads until the replies are there.
    fn exchange(
        &mut self,
        mut more: impl FnMut(&mut Vec<u8>) -> std::io::Result<()>,
        replies: usize,
        patience: Duration,
        what: &str,
    ) -> Result<Vec<Reply>, Verdict> {
        let lost = |e: &std::io::Error| unavailable(&format!("{what}: {}", errno_text(e)));
        let (mut out, mut written, mut bytes) = (Vec::new(), 0, vec![0; 16 << 10]);
        while self.replies.len() < replies {
            if written == out.len() {
                out.clear();
                written = 0;
                more(&mut out).map_err(|e| lost(&e))?;
            }
            if written < out.len() {
                match self.stream.write(&out[written..]) {
                    Ok(count) => written += count,
                    Err(e) if is_transient(&e) => {}
                    // There may be an answer that says why.
                    Err(_) => written = out.len(),
                }
            }
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, written < out.len() || !out.is_empty());
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stream.as_fd(), events)], timeout) {
                Ok(0) => return Err(unavailable(&format!("timed out while waiting for {what}"))),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(lost(&errno.into())),
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(unavailable(&format!("lost connection before {what}"))),
                Ok(count) => self.take(&bytes[..count])?,
                Err(e) if is_transient(&e) => {}
                Err(e) => return Err(lost(&e)),
            }
        }
        Ok(self.replies.drain(..replies).collect())
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Verdict> {
        while !bytes.is_empty() {
            let fed = self.reader.feed(bytes);
            let (count, reply) = fed.map_err(|bad| unavailable(&bad.to_string()))?;
            self.replies.extend(reply);
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
