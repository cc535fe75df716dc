//! qmgr - the agent's connection to qmgr: leases come in, reports go out
//!
//! A report is kept until qmgr notes it, which is when it is on disk. When the connection ends, the
//! agent finishes what is under way, and connects to the next qmgr at once to announce it, so that
//! nobody else is given the same message meanwhile; what is not under way it gives back.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use worker_proto::clock::Time;
use worker_proto::sys::errno_text;

use crate::smtp::stream;
use crate::wire::{Decoder, Header, Held, Lease, Report};

/// A non-blocking stream of bytes, both ways.
pub trait Stream: Read + Write + AsFd {}
impl<T: Read + Write + AsFd> Stream for T {}

/// How long after a connection to qmgr has failed it is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a report is kept for a qmgr that does not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What qmgr wants.
pub(super) enum Work {
    Deliver(Lease),
    /// A connection to this relay, without a message.
    Probe(String),
}

pub(super) struct Qmgr<'a> {
    stream: Option<Box<dyn Stream + 'a>>,
    /// Where its successor is; None: there will be none.
    path: Option<&'a Path>,
    decoder: Decoder,
    output: Vec<u8>,
    /// Reports that are not noted, oldest first.
    kept: Vec<(Held, Report)>,
    /// The qmgr whose leases these are has gone.
    lost: bool,
    /// When to connect again.
    next: Time,
    /// When reports that nobody takes are given up: some time after the last one.
    give_up: Time,
}

impl<'a> Qmgr<'a> {
    pub(super) fn new(stream: impl Stream + 'a, path: Option<&'a Path>) -> Self {
        Self {
            stream: Some(Box::new(stream)),
            path,
            decoder: Decoder::default(),
            output: Vec::new(),
            kept: Vec::new(),
            lost: false,
            next: Time::ZERO,
            give_up: Time::ZERO,
        }
    }

    /// Whether the qmgr that gave the leases has gone: nothing new is begun.
    pub(super) const fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether every report was noted, or nobody will take the rest.
    pub(super) fn is_done(&self, now: Time) -> bool {
        self.kept.is_empty() || self.lost && (self.path.is_none() || now >= self.give_up)
    }

    /// Tells what is of no use to a later qmgr: without a connection it is left out.
    pub(super) fn send(&mut self, header: &Header) {
        if self.stream.is_some() {
            self.output.extend_from_slice(&header.encode());
        }
    }

    pub(super) fn report(&mut self, now: Time, held: Held, report: Report) {
        self.output.extend_from_slice(&Header::Report(report.clone()).encode());
        self.kept.push((held, report));
        self.give_up = now + PATIENCE;
    }

    /// Connects to the next qmgr, if there is none, and announces what is under way. Whether it has.
    pub(super) fn announce(&mut self, now: Time, under_way: impl Iterator<Item = Held>) -> bool {
        let Some(path) = self.path.filter(|_| self.stream.is_none() && now >= self.next) else {
            return false;
        };
        let held: Vec<_> =
            under_way.chain(self.kept.iter().map(|(held, _)| held.clone())).collect();
        if held.is_empty() {
            return false;
        }
        self.next = now + AGAIN;
        match reach(path) {
            Ok(stream) => {
                self.stream = Some(Box::new(stream));
                self.decoder = Decoder::default();
                self.output = Header::Announce(held).encode();
                for (_, report) in &self.kept {
                    self.output.extend_from_slice(&Header::Report(report.clone()).encode());
                }
            }
            Err(e) => log::debug!("connect {}: {}", path.display(), errno_text(&e)),
        }
        self.stream.is_some()
    }

    pub(super) fn flush(&mut self) {
        if let Some(stream) = &mut self.stream
            && stream::drain(stream, &mut self.output).is_err()
        {
            self.ended();
        }
    }

    /// Reads what is there: the work in it.
    pub(super) fn read(&mut self) -> Vec<Work> {
        let mut work = Vec::new();
        let Some(stream) = &mut self.stream else { return work };
        let mut bytes = [0; 64 * 1024];
        match stream.read(&mut bytes) {
            Ok(0) => self.ended(),
            Ok(count) => self.decoder.push(&bytes[..count]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.ended(),
        }
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Header::Lease(lease))) if !self.lost => work.push(Work::Deliver(lease)),
                Ok(Some(Header::Probe(relay))) if !self.lost => work.push(Work::Probe(relay)),
                Ok(Some(Header::Noted(noted))) => {
                    self.kept.retain(|(held, _)| !noted.contains(&held.lease));
                }
                Ok(None) => return work,
                Ok(Some(_)) | Err(_) => {
                    log::warn!("protocol error from qmgr, closing connection");
                    self.ended();
                    self.decoder = Decoder::default();
                    return work;
                }
            }
        }
    }

    fn ended(&mut self) {
        self.stream = None;
        self.output.clear();
        self.lost = true;
    }

    /// What to poll for: leases only where there is room for them.
    pub(super) fn interest(&self, room: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let stream = self.stream.as_ref()?;
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, room || self.lost);
        flags.set(PollFlags::POLLOUT, !self.output.is_empty());
        Some((stream.as_fd(), flags))
    }

    /// When something is to be done without a word from anybody.
    pub(super) fn deadline(&self, under_way: bool) -> Option<Time> {
        let again = self.lost && self.path.is_some() && self.stream.is_none();
        let again = again.then_some(self.next).filter(|_| under_way || !self.kept.is_empty());
        let end = (self.lost && !self.kept.is_empty() && !under_way).then_some(self.give_up);
        again.into_iter().chain(end).min()
    }
}

impl Drop for Qmgr<'_> {
    fn drop(&mut self) {
        for (held, report) in self.kept.iter().filter(|_| self.path.is_some()) {
            let outcomes: Vec<_> = report.outcomes.iter().map(|(_, o)| o.to_string()).collect();
            let outcomes = outcomes.join("; ");
            log::warn!("{}: cannot report to qmgr, message may be sent again: {outcomes}", held.id);
        }
    }
}

/// Connects without waiting: qmgr may be about to start.
fn reach(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}
