//! client - a connection that a worker has taken

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockaddrLike, SockaddrStorage, accept4, getsockname, getsockopt,
    setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::abi::Transport;
use crate::clock::Time;

/// A client's connection, in blocking mode.
#[derive(Debug)]
pub enum Client {
    /// Over TCP, with the client's address.
    Tcp(TcpStream, SocketAddr),
    /// Over a socket in the file system, with the client's user id.
    Unix(UnixStream, u32),
}

impl Client {
    /// Takes a client from a listen socket without waiting for one; None when none is there, perhaps
    /// because another worker was faster (Q01). Clients that have gone are passed over.
    ///
    /// # Errors
    /// The process has no descriptor left, and the like.
    pub fn accept(listen: BorrowedFd<'_>, transport: Transport) -> io::Result<Option<Self>> {
        while let Some(fd) = accept(listen)? {
            let fd = if transport == Transport::Pass { receive(&fd) } else { Ok(fd) };
            // A client may have reset its connection while it waited (ENOTCONN), or have passed none:
            // its matter, and not the worker's.
            match fd.and_then(Self::from_fd) {
                Ok(client) => return Ok(Some(client)),
                Err(e) => log::debug!("client has gone: {}", crate::sys::errno_text(&e)),
            }
        }
        Ok(None)
    }

    /// A connection that is there already.
    ///
    /// # Errors
    /// It is no connection.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let local: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        if local.family() == Some(AddressFamily::Unix) {
            let uid = getsockopt(&fd, sockopt::PeerCredentials)?.uid();
            return Ok(Self::Unix(UnixStream::from(fd), uid));
        }
        let stream = TcpStream::from(fd);
        let peer = stream.peer_addr()?;
        // Replies are written whole; waiting for more only delays them.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream, peer))
    }

    /// How long a read or a write may wait.
    ///
    /// # Errors
    /// The time is zero.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout);
        match self {
            Self::Tcp(s, _) => {
                s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout))
            }
            Self::Unix(s, _) => {
                s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout))
            }
        }
    }

    /// Whether reads and writes return at once.
    ///
    /// # Errors
    /// The descriptor is of no use.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Tcp(s, _) => s.set_nonblocking(on),
            Self::Unix(s, _) => s.set_nonblocking(on),
        }
    }
}

impl Read for Client {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s, _) => s.read(bytes),
            Self::Unix(s, _) => s.read(bytes),
        }
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s, _) => s.write(bytes),
            Self::Unix(s, _) => s.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s, _) => s.as_fd(),
            Self::Unix(s, _) => s.as_fd(),
        }
    }
}

/// Writes all bytes before a deadline to a connection that does not block. A client that reads nothing,
/// or too slowly, holds nobody longer than that.
///
/// # Errors
/// The connection is lost, or the deadline has passed ([`io::ErrorKind::TimedOut`]).
pub fn write_within<S: Write + AsFd>(
    stream: &mut S,
    mut bytes: &[u8],
    deadline: Time,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = deadline.since(Time::now());
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        if bytes.is_empty() {
            break;
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The deadline is the limit, and it is shorter than the watchdog's only by chance.
        crate::watchdog::feed();
        let slice = PollTimeout::try_from(left.min(SLICE)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], slice) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    stream.flush()
}

/// The longest single wait, so that the watchdog is fed in a long one.
const SLICE: Duration = Duration::from_secs(10);

/// Takes what a client of a `pass` service passes; None when none is there.
pub(crate) fn accept_passed(listen: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    while let Some(fd) = accept(listen)? {
        // One that passes nothing is its own trouble.
        if let Ok(passed) = receive(&fd) {
            return Ok(Some(passed));
        }
    }
    Ok(None)
}

/// Takes a connection without waiting.
pub(crate) fn accept(listen: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    loop {
        match accept4(listen.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(raw) => return crate::sys::adopt(raw).map(Some),
            // Or the master has ended the socket's listening; the end of its own comes at once.
            Err(Errno::EAGAIN | Errno::EINVAL) => return Ok(None),
            // A client that is gone already (accept(2)); behind it others may wait, of which an
            // edge-triggered loop is not told again.
            Err(Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How many seconds a connection may take to come over. Its sender has it ready, and until then the
/// worker serves nobody else.
const PASS_PATIENCE: i64 = 1;

/// A `pass` service gets its clients' connections over its own (master(5)), one over each. What else
/// is passed is closed.
fn receive(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let patience = TimeVal::seconds(PASS_PATIENCE);
    setsockopt(fd, sockopt::ReceiveTimeout, &patience)?;
    let passed = crate::sys::receive_descriptors(fd.as_fd())?;
    passed.into_iter().next().ok_or_else(|| io::Error::other("no connection was passed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;
    use std::net::TcpListener;
    use std::os::fd::RawFd;

    use nix::libc::linger;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    #[test]
    fn q01_a_client_that_has_reset_is_passed_over_and_the_next_is_served() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let gone = TcpStream::connect(address).unwrap();
        let at_once = linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&gone, sockopt::Linger, &at_once).unwrap();
        drop(gone);
        let there = TcpStream::connect(address).unwrap();
        let accept = || Client::accept(listener.as_fd(), Transport::Inet);
        match accept().unwrap().unwrap() {
            Client::Tcp(_, peer) => assert_eq!(peer, there.local_addr().unwrap()),
            Client::Unix(..) => panic!("it came over TCP"),
        }
        assert!(accept().unwrap().is_none());
    }

    /// A client that did not read blocked its worker until the watchdog ended it.
    #[test]
    fn a_client_that_does_not_read_is_given_up_at_the_deadline() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let start = Time::now();
        let deadline = start + Duration::from_millis(300);
        let bytes = vec![b'x'; 4 << 20];
        let result = write_within(&mut ours, &bytes, deadline).map_err(|e| e.kind());
        assert_eq!(result, Err(io::ErrorKind::TimedOut));
        // One that reads a little at a time moves no deadline.
        let deadline = Time::now() + Duration::from_millis(300);
        let written = std::thread::scope(|scope| {
            scope.spawn(move || while theirs.read(&mut [0; 100]).is_ok_and(|n| n > 0) {});
            while write_within(&mut ours, &bytes[..1000], deadline).is_ok() {}
            drop(ours);
            Time::now()
        });
        assert!(written >= deadline);
    }

    fn pass(over: &UnixStream, fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let (text, flags) = ([IoSlice::new(b"x")], MsgFlags::empty());
        sendmsg::<()>(over.as_raw_fd(), &text, &rights, flags, None).unwrap();
    }

    /// Whoever could reach the socket filled the worker's table of descriptors.
    #[test]
    fn what_is_passed_beside_a_connection_is_closed() {
        for count in [1, 2, 3, 20, 253] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (mut watch, passed) = UnixStream::pair().unwrap();
            pass(&theirs, &vec![passed.as_raw_fd(); count]);
            drop(passed);
            let received = receive(&OwnedFd::from(ours)).unwrap();
            drop(received);
            // The end of the stream shows that no copy is open.
            watch.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            assert_eq!(watch.read(&mut [0; 1]).unwrap(), 0, "{count} descriptors");
        }
    }

    /// A worker was held for ten seconds.
    #[test]
    fn a_client_that_passes_nothing_is_given_up_soon() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let before = Time::now();
        assert!(receive(&OwnedFd::from(ours)).is_err());
        let waited = Time::now().since(before);
        assert!(waited < Duration::from_secs(5), "{waited:?}");
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(b"x").unwrap();
        assert!(receive(&OwnedFd::from(ours)).is_err());
    }
}
