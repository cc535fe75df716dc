//! spool - a message between standard input and its way on
//!
//! A small one stays in memory. A large one goes into the drop directory as it comes in, where it stays
//! if smtpd does not take it: it is never in memory as a whole.

use std::io;
use std::path::Path;

use crate::maildrop::{self, Draft};
use crate::message::BodyLines;
use crate::wire::Submission;

/// The most that is kept in memory.
const MEMORY: usize = 1 << 20;

/// A message.
#[derive(Debug)]
pub(super) struct Spool {
    /// The header as smtpd is to get it, with the empty line behind it.
    head: Vec<u8>,
    /// The message as it goes into the drop directory, without its body.
    submission: Submission,
    body: Body,
    size: u64,
    lines: BodyLines,
}

#[derive(Debug)]
enum Body {
    Memory(Vec<u8>),
    File(Draft),
}

impl Spool {
    pub(super) fn new(head: Vec<u8>, submission: Submission) -> Self {
        let size = head.len() as u64;
        let body = Body::Memory(Vec::new());
        Self { head, submission, body, size, lines: BodyLines::default() }
    }

    /// Bytes of the message, as smtpd gets it.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the message as it goes into the drop directory.
    pub(super) const fn complete_size(&self) -> u64 {
        self.submission.body.len() as u64 + self.size - self.head.len() as u64
    }

    /// The name by which qmgr knows it when it comes again.
    pub(super) fn token(&self) -> &str {
        &self.submission.token
    }

    pub(super) fn sender(&self) -> &str {
        &self.submission.sender
    }

    pub(super) fn recipients(&self) -> &[String] {
        &self.submission.recipients
    }

    /// Takes a piece of the body as it came.
    pub(super) fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.change(|lines, out| lines.feed(bytes, out))
    }

    /// The body is whole.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.change(BodyLines::end)
    }

    fn change(&mut self, take: impl FnOnce(&mut BodyLines, &mut Vec<u8>)) -> io::Result<()> {
        match &mut self.body {
            Body::Memory(bytes) => {
                let before = bytes.len();
                take(&mut self.lines, bytes);
                self.size += (bytes.len() - before) as u64;
                if bytes.len() > MEMORY && before <= MEMORY {
                    self.move_to_file()?;
                }
            }
            Body::File(draft) => {
                let mut bytes = Vec::new();
                take(&mut self.lines, &mut bytes);
                self.size += bytes.len() as u64;
                draft.write(&bytes)?;
            }
        }
        Ok(())
    }

    /// Where there can be no file, it stays in memory: smtpd may take it.
    fn move_to_file(&mut self) -> io::Result<()> {
        let directory = Path::new(maildrop::DIRECTORY);
        if let Body::Memory(bytes) = &self.body
            && let Ok(mut draft) = Draft::new(directory, &self.submission)
        {
            draft.write(bytes)?;
            self.body = Body::File(draft);
        }
        Ok(())
    }

    /// Adds the bytes from a place on to `out`, as many as are at hand; none at the end.
    pub(super) fn read(&self, at: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let head = self.head.len() as u64;
        let Some(in_body) = at.checked_sub(head) else {
            out.extend_from_slice(&self.head[usize::try_from(at).unwrap_or(0)..]);
            return Ok(());
        };
        match &self.body {
            Body::Memory(bytes) => {
                let start = usize::try_from(in_body).unwrap_or(usize::MAX).min(bytes.len());
                let end = bytes.len().min(start + MEMORY);
                out.extend_from_slice(&bytes[start..end]);
            }
            Body::File(draft) => {
                let before = out.len();
                out.resize(before + (64 << 10), 0);
                let count = draft.read(in_body, &mut out[before..])?;
                out.truncate(before + count);
            }
        }
        Ok(())
    }

    /// Leaves it in the drop directory; `why` goes into qmgr's log.
    pub(super) fn store(mut self, why: &str) -> io::Result<()> {
        match self.body {
            Body::File(draft) => draft.finish(),
            Body::Memory(bytes) => {
                why.clone_into(&mut self.submission.origin);
                let directory = Path::new(maildrop::DIRECTORY);
                let mut draft = Draft::new(directory, &self.submission)?;
                draft.write(&bytes)?;
                draft.finish()
            }
        }
    }
}
