//! wire - what qmgr and its clients say to each other
//!
//! On `private/qmgr` clients speak first: a wakeup byte, or frames. On `private/delivery` qmgr
//! connects and feeds one [`Header::Lease`] after another; the agent answers each with a
//! [`Header::Report`], and keeps that until it is [`Header::Noted`]. When qmgr goes, the agent
//! connects to the next one and begins with [`Header::Announce`]. A frame is its length in four bytes (network order), a line of JSON, and the
//! message's bytes if there are any. Both ends belong to this package, so there is no version.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::outcome::{Outcome, RelayNews};

/// The longest frame. Its first byte is below the wakeup byte, so that the two can be told apart.
pub const MAX_FRAME: usize = 0x4000_0000;

/// How urgent a message is (R7).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Before all others.
    Urgent,
    /// Mail.
    #[default]
    Normal,
    /// After all others.
    Bulk,
}

/// A message to be queued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Envelope sender; empty is the null sender.
    pub sender: String,
    /// Envelope recipients.
    pub recipients: Vec<String>,
    /// Where it came from, for the log: `smtp 127.0.0.1`, `uid 1000`.
    pub origin: String,
    /// How urgent it is.
    pub lane: Lane,
    /// Tells this submission from every other, so that it can be offered again when an answer is
    /// lost without being queued twice. Empty: it is not offered again.
    pub token: String,
    /// The message as it will be sent, with CRLF line ends.
    #[serde(skip)]
    pub body: Vec<u8>,
}

/// What a message's offer came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum OfferReply {
    /// It is on disk under this id.
    Queued {
        /// The queue id.
        id: String,
    },
    /// It was not taken.
    Refused {
        /// SMTP reply code.
        code: u16,
        /// Enhanced status code (RFC 3463).
        enhanced: String,
        /// Why.
        text: String,
    },
}

/// One message for one agent, for as long as the connection lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Number of the lease, for its report.
    pub lease: u64,
    /// The queue id.
    pub id: String,
    /// Envelope sender.
    pub sender: String,
    /// The recipients that are still to be delivered to.
    pub recipients: Vec<String>,
    /// The relays to ask, one after the other, by their names in `relayhost`.
    pub relays: Vec<String>,
    /// Which recipient is not for which of these relays: it has refused it, or is to be left alone.
    pub except: Vec<(usize, String)>,
    /// The message.
    #[serde(skip)]
    pub body: Vec<u8>,
}

/// What became of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Number of the lease.
    pub lease: u64,
    /// What each relay that was asked said of each recipient, by its position in the lease.
    pub outcomes: Vec<(usize, Outcome)>,
}

/// A relay takes its time over a lease, or has answered after all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Number of the lease.
    pub lease: u64,
    /// The relay.
    pub relay: String,
    /// What is awaited from it for long; None when it has answered.
    pub waits_for: Option<String>,
}

/// A lease granted by an earlier qmgr and still held by an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its number, for its report.
    pub lease: u64,
    /// The queue id.
    pub id: String,
    /// Its recipients, in the order of their numbers in the report.
    pub recipients: Vec<String>,
}

/// The first part of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Header {
    /// Take this message; the answer is [`Header::Offered`].
    Offer(Submission),
    /// The answer to an offer.
    Offered(OfferReply),
    /// Deliver this message; the answer is [`Header::Report`].
    Lease(Lease),
    /// The answer to a lease.
    Report(Report),
    /// The reports on these leases are on disk.
    Noted(Vec<u64>),
    /// An agent has these leases of another qmgr under way, or has a report on them; each gets its
    /// report.
    Announce(Vec<Held>),
    /// A lease is under way, and slow.
    Progress(Progress),
    /// Connect to this relay, without a message; the answer is [`Header::News`].
    Probe(String),
    /// What an agent learned about a relay.
    News(RelayNews),
    /// An operator's request, in words; the answer is [`Header::Answer`].
    Ask(Vec<String>),
    /// The first part of a long answer to an operator, or the next one.
    Part(String),
    /// The answer to an operator, or its last part: exit status and text.
    Answer(u8, String),
}

impl Header {
    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body: &[u8] = match self {
            Self::Offer(submission) => &submission.body,
            Self::Lease(lease) => &lease.body,
            _ => &[],
        };
        // These types have no value that JSON cannot write.
        let mut header = serde_json::to_vec(self).unwrap_or_default();
        header.push(b'\n');
        let mut frame = Vec::with_capacity(4 + header.len() + body.len());
        frame.extend_from_slice(&length(header.len() + body.len()));
        frame.extend_from_slice(&header);
        frame.extend_from_slice(body);
        frame
    }

    /// Reads what follows the length.
    ///
    /// # Errors
    /// It is no frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadFrame> {
        let end = bytes.iter().position(|&b| b == b'\n').ok_or(BadFrame)?;
        let mut header: Self = serde_json::from_slice(&bytes[..end]).map_err(|_| BadFrame)?;
        let rest = &bytes[end + 1..];
        match &mut header {
            Self::Offer(submission) => submission.body = rest.to_vec(),
            Self::Lease(lease) => lease.body = rest.to_vec(),
            _ => {}
        }
        Ok(header)
    }
}

/// The first four bytes of a frame.
#[must_use]
pub fn length(size: usize) -> [u8; 4] {
    u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes()
}

/// The line of an offer, between the length and the message's bytes, which may be many: nothing of them
/// is copied.
#[must_use]
pub fn offer_line(submission: &Submission) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Borrowed<'a> {
        Offer(&'a Submission),
    }
    let mut line = serde_json::to_vec(&Borrowed::Offer(submission)).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrame;

impl From<BadFrame> for io::Error {
    fn from(_: BadFrame) -> Self {
        Self::new(io::ErrorKind::InvalidData, "not a frame of the queue's protocol")
    }
}

/// Gathers bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// What was read is no frame; the connection is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Header>, BadFrame> {
        let Some((size, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_be_bytes(*size) as usize;
        if size > MAX_FRAME {
            return Err(BadFrame);
        }
        let Some(frame) = rest.get(..size) else { return Ok(None) };
        let header = Header::decode(frame)?;
        self.bytes.drain(..4 + size);
        Ok(Some(header))
    }

    /// The first byte, if it is no frame's: a trigger's.
    #[must_use]
    pub fn trigger(&self) -> Option<u8> {
        self.bytes.first().copied().filter(|&b| usize::from(b) > MAX_FRAME >> 24)
    }
}

/// Writes a frame; it waits.
///
/// # Errors
/// The connection is lost or slow.
pub fn send(stream: &mut impl Write, header: &Header) -> io::Result<()> {
    stream.write_all(&header.encode())
}

/// Reads a frame; it waits. None is the end of the connection between frames.
///
/// # Errors
/// The connection is lost or slow, or what comes is no frame.
pub fn receive(stream: &mut impl Read) -> io::Result<Option<Header>> {
    let mut size = [0; 4];
    match stream.read(&mut size)? {
        0 => return Ok(None),
        n => stream.read_exact(&mut size[n..])?,
    }
    let size = u32::from_be_bytes(size) as usize;
    if size > MAX_FRAME {
        return Err(BadFrame.into());
    }
    let mut frame = vec![0; size];
    stream.read_exact(&mut frame)?;
    Ok(Some(Header::decode(&frame)?))
}

/// Offers a message and waits for the answer.
///
/// # Errors
/// The connection is lost or slow: whether the message was queued is not known.
pub fn offer<S: Read + Write>(stream: &mut S, submission: &Submission) -> io::Result<OfferReply> {
    let line = offer_line(submission);
    stream.write_all(&length(line.len() + submission.body.len()))?;
    stream.write_all(&line)?;
    stream.write_all(&submission.body)?;
    match receive(stream)? {
        Some(Header::Offered(reply)) => Ok(reply),
        Some(_) => Err(BadFrame.into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Asks what an operator wants to know or do: the exit status and the text, or the end of a text that
/// has come in parts.
///
/// # Errors
/// The connection is lost or slow, or a part cannot be taken.
pub fn ask<S: Read + Write>(
    stream: &mut S,
    words: &[String],
    mut take_part: impl FnMut(&str) -> io::Result<()>,
) -> io::Result<(u8, String)> {
    send(stream, &Header::Ask(words.to_vec()))?;
    loop {
        match receive(stream)? {
            Some(Header::Part(text)) => take_part(&text)?,
            Some(Header::Answer(code, text)) => return Ok((code, text)),
            Some(_) => return Err(BadFrame.into()),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Whether the other end has gone, as against not being there or not answering.
#[must_use]
pub fn is_cut(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn submission(body: &[u8]) -> Submission {
        Submission {
            sender: "a@x".to_owned(),
            recipients: vec!["b@y".to_owned()],
            origin: "uid 0".to_owned(),
            lane: Lane::Normal,
            token: String::new(),
            body: body.to_vec(),
        }
    }

    proptest! {
        #[test]
        fn frames_survive_every_split(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..4),
            step in 1..20_usize,
        ) {
            let frames: Vec<_> = bodies.iter().map(|b| Header::Offer(submission(b))).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(Header::encode).collect();
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for part in bytes.chunks(step) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn an_offer_is_the_same_in_parts() {
        let offer = submission(b"a\r\n");
        let line = offer_line(&offer);
        let parts = [&length(line.len() + 3)[..], &line, b"a\r\n"].concat();
        assert_eq!(parts, Header::Offer(offer).encode());
    }

    #[test]
    fn a_wakeup_is_told_from_a_frame() {
        let mut decoder = Decoder::default();
        decoder.push(b"W");
        assert_eq!(decoder.trigger(), Some(b'W'));
        let mut decoder = Decoder::default();
        decoder.push(&Header::Ask(vec![]).encode());
        assert_eq!(decoder.trigger(), None);
    }

    #[test]
    fn the_blocking_end_reads_what_the_other_wrote() {
        let mut bytes = Vec::new();
        let header = Header::Lease(Lease {
            lease: 7,
            id: "X".to_owned(),
            sender: String::new(),
            recipients: vec!["b@y".to_owned()],
            relays: vec!["a".to_owned()],
            except: vec![],
            body: b"a\r\n".to_vec(),
        });
        send(&mut bytes, &header).unwrap();
        let mut bytes = bytes.as_slice();
        assert_eq!(receive(&mut bytes).unwrap(), Some(header));
        assert_eq!(receive(&mut bytes).unwrap(), None);
    }
}
