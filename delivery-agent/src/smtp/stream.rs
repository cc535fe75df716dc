//! stream - a session on a socket, with a deadline for each stage
//!
//! The socket is non-blocking and the caller polls. A deadline runs from the moment an answer is
//! awaited, not from the last byte, so that a server that drips does not hold a worker for ever; the
//! body has one for each 64 kilobytes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use worker_proto::clock::Time;
use worker_proto::sys::{errno_text, unacknowledged};

use super::session::{Event, Session, Stage};

/// Bytes both ways, without waiting; TLS would be another one.
pub trait Transport: Read + Write + AsFd {
    /// How many bytes that were written the other end has not acknowledged, as far as is known.
    fn on_the_way(&self) -> u64;
}

impl Transport for TcpStream {
    fn on_the_way(&self) -> u64 {
        unacknowledged(self.as_fd()).unwrap_or(0)
    }
}

/// How long each stage may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting, for each address.
    pub connect: Duration,
    /// The greeting, and the answer to EHLO.
    pub helo: Duration,
    /// The answer to MAIL.
    pub mail: Duration,
    /// The answer to each RCPT.
    pub rcpt: Duration,
    /// The answer to DATA.
    pub data_init: Duration,
    /// The taking of each block of the body.
    pub data_xfer: Duration,
    /// The answer to the dot.
    pub data_done: Duration,
    /// The answer to RSET.
    pub rset: Duration,
}

impl Timeouts {
    const fn of(&self, stage: Stage) -> Option<Duration> {
        match stage {
            Stage::Greeting | Stage::Hello => Some(self.helo),
            Stage::Mail => Some(self.mail),
            Stage::Rcpt => Some(self.rcpt),
            Stage::Data => Some(self.data_init),
            Stage::Body => Some(self.data_xfer),
            Stage::Dot => Some(self.data_done),
            Stage::Rset | Stage::Quit => Some(self.rset),
            Stage::Idle => None,
        }
    }
}

/// Connects to the first address that answers.
///
/// # Errors
/// The last address' failure, as a sentence.
pub fn connect(addresses: &[SocketAddr], within: Duration) -> Result<TcpStream, String> {
    let mut failure = "no address".to_owned();
    for address in addresses {
        let socket = TcpStream::connect_timeout(address, within).and_then(|socket| {
            socket.set_nonblocking(true)?;
            // Commands leave when they are written; the session gathers them itself.
            socket.set_nodelay(true)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => return Ok(socket),
            Err(e) if e.kind() == ErrorKind::TimedOut => {
                failure = format!("connect to {address}: timed out");
            }
            Err(e) => failure = format!("connect to {address}: {}", errno_text(&e)),
        }
    }
    Err(failure)
}

/// What a deadline belongs to: when it changes, the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Awaited {
    stage: Stage,
    replies: u64,
    blocks: u64,
}

/// A session and its transport.
#[derive(Debug)]
pub struct Link<T> {
    transport: T,
    session: Session,
    timeouts: Timeouts,
    written: u64,
    awaited: Option<Awaited>,
    since: Time,
    deadline: Option<Time>,
}

impl<T: Transport> Link<T> {
    /// Starts on a fresh connection.
    pub const fn new(transport: T, session: Session, timeouts: Timeouts) -> Self {
        let since = Time::ZERO;
        Self { transport, session, timeouts, written: 0, awaited: None, since, deadline: None }
    }

    /// What is awaited from the server, and since when.
    #[must_use]
    pub fn awaits(&self) -> Option<(Stage, Time)> {
        let stage = self.awaited.map(|awaited| awaited.stage)?;
        (!matches!(stage, Stage::Idle | Stage::Quit)).then_some((stage, self.since))
    }

    /// The session, to offer messages.
    pub const fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// What happened.
    pub fn event(&mut self) -> Option<Event> {
        self.session.event()
    }

    /// What to poll for.
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        match self.session.output().is_empty() {
            true => PollFlags::POLLIN,
            false => PollFlags::POLLIN | PollFlags::POLLOUT,
        }
    }

    /// When [`Link::is_late`] begins.
    #[must_use]
    pub const fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Writes what can be written.
    pub fn flush(&mut self, now: Time) {
        while !self.session.output().is_empty() {
            match self.transport.write(self.session.output()) {
                Ok(0) => return self.lost("connection closed"),
                Ok(count) => {
                    self.session.wrote(count);
                    self.written += count as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => {
                    // The server may have said why before it closed.
                    while self.read_once() {}
                    // An acknowledgement may have been lost with the rest.
                    return self.session.lost(&errno_text(&e));
                }
            }
        }
        self.renew(now);
    }

    /// Reads what is there.
    pub fn read(&mut self, now: Time) {
        self.read_once();
        self.renew(now);
    }

    /// Whether the deadline has passed: it is time to [`Link::give_up`].
    #[must_use]
    pub fn is_late(&self, now: Time) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Waits no longer for the answer.
    pub fn give_up(&mut self) {
        self.lost("timed out");
        self.deadline = None;
    }

    /// Whether something was read.
    fn read_once(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.transport.read(&mut bytes) {
            Ok(0) => self.lost("connection closed"),
            Ok(count) => {
                self.session.input(&bytes[..count]);
                return true;
            }
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            // An acknowledgement may have been lost with the rest.
            Err(e) => self.session.lost(&errno_text(&e)),
        }
        false
    }

    fn lost(&mut self, why: &str) {
        self.session.not_arrived(self.transport.on_the_way());
        self.session.lost(why);
    }

    fn renew(&mut self, now: Time) {
        let stage = self.session.stage();
        let blocks = if stage == Stage::Body { self.written >> 16 } else { 0 };
        let awaited = Some(Awaited { stage, replies: self.session.replies(), blocks });
        if awaited != self.awaited {
            (self.awaited, self.since) = (awaited, now);
            self.deadline = self.timeouts.of(stage).map(|within| now + within);
        }
    }
}

impl<T: Transport> AsFd for Link<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

/// Writes a byte string to a non-blocking stream as far as it goes, and removes it from the buffer.
///
/// # Errors
/// The connection is lost.
pub fn drain<W: Write>(stream: &mut W, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut done = 0;
    let mut result = Ok(());
    while done < buffer.len() && result.is_ok() {
        match stream.write(&buffer[done..]) {
            Ok(0) => result = Err(ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => result = Err(e),
        }
    }
    buffer.drain(..done);
    result
}
