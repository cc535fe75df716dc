//! channel - one status socket per worker
//!
//! A pair of its own for each worker, with message borders: who writes is known by the descriptor,
//! not by what is written, and one worker's records cannot run into another's (W05). To retire a
//! worker the master shuts down its own direction: the worker sees end of file, and what it writes
//! still arrives (W08).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, shutdown, socketpair,
};
use worker_proto::status::StatusRecord;
use worker_proto::sys;

/// The master's end.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// A record.
    Record(StatusRecord),
    /// Something else, of this many bytes.
    Odd(usize),
    /// The worker has closed its end.
    End,
    /// Nothing more for now.
    Empty,
}

impl Channel {
    /// A new pair: the master's end, and the worker's, which lasts until the worker is started.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self { fd: sys::set_high(ours)? }, sys::set_high(theirs)?))
    }

    /// The master's end of a pair that another program has made in this process.
    #[must_use]
    pub const fn adopt(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Reads one message, without waiting.
    #[must_use]
    pub fn read(&self) -> Read {
        // Larger than a record, so that a longer message is told from one.
        let mut bytes = [0; 64];
        match recv(self.fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Read::End,
            Ok(size) => StatusRecord::decode(&bytes[..size]).map_or(Read::Odd(size), Read::Record),
            Err(Errno::EAGAIN | Errno::EINTR) => Read::Empty,
            Err(_) => Read::End,
        }
    }

    /// Tells the worker to end when it is idle.
    pub fn retire(&self) {
        // A worker that has ended already needs no telling.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::send;
    use nix::unistd::{read, write};
    use worker_proto::abi::Generation;
    use worker_proto::status::Availability;

    #[test]
    fn j01_w08_what_a_retired_worker_writes_still_arrives() {
        let (master, worker) = Channel::pair().unwrap();
        assert_eq!(master.read(), Read::Empty);
        master.retire();
        assert_eq!(read(&worker, &mut [0; 1]), Ok(0), "the worker sees the end");
        let record = StatusRecord::new(7, Generation(1), Availability::Taken);
        write(&worker, &record.encode()).unwrap();
        assert_eq!(master.read(), Read::Record(record));
        drop(worker);
        assert_eq!(master.read(), Read::End);
    }

    #[test]
    fn j02_messages_do_not_run_into_each_other() {
        let (master, worker) = Channel::pair().unwrap();
        let record = StatusRecord::new(7, Generation(1), Availability::Available);
        for bytes in [&record.encode()[..5], &record.encode(), &[0; 40]] {
            send(worker.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
        }
        assert_eq!(master.read(), Read::Odd(5));
        assert_eq!(master.read(), Read::Record(record));
        assert_eq!(master.read(), Read::Odd(40));
        assert_eq!(master.read(), Read::Empty);
    }
}
