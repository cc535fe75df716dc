//! sources - what is registered with the poll
//!
//! A registration gets a number of its own that is never used again, so that an event that was
//! gathered before its source went away finds nothing. A descriptor is always deregistered before it
//! is closed: workers hold copies of listen sockets, and those would keep a registration alive.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::ServiceId;
use crate::avail::WorkerId;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    Control,
    Client(u64),
    Listen(ServiceId),
    Status(ServiceId, WorkerId),
    Trigger(u64),
    Names,
    /// Not a descriptor: a job that waits for its turn.
    Jobs,
    Verdict,
}

pub(super) struct Sources {
    /// Not its registry's clone: that would be a second descriptor, at a number that is a worker's.
    poll: Poll,
    next: usize,
    known: HashMap<Token, Source>,
}

impl Sources {
    pub(super) fn new(poll: Poll) -> Self {
        Self { poll, next: 0, known: HashMap::new() }
    }

    /// Waits for events.
    pub(super) fn wait(&mut self, events: &mut Events, longest: Duration) -> io::Result<()> {
        self.poll.poll(events, Some(longest))
    }

    pub(super) fn find(&self, token: Token) -> Option<Source> {
        self.known.get(&token).copied()
    }

    pub(super) fn add(
        &mut self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        source: Source,
    ) -> io::Result<Token> {
        let token = Token(self.next);
        self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, interest)?;
        self.next += 1;
        self.known.insert(token, source);
        Ok(token)
    }

    /// Changes the interest. What is ready already is reported again (EPOLL_CTL_MOD).
    pub(super) fn change(
        &mut self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.poll.registry().reregister(&mut SourceFd(&fd.as_raw_fd()), token, interest)
    }

    pub(super) fn remove(&mut self, fd: BorrowedFd<'_>, token: Token) {
        if self.known.remove(&token).is_some() {
            // It was registered, and is open, so the kernel knows it.
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
    }
}
