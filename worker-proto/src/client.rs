//! client - a connection that a worker has taken

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockaddrLike, SockaddrStorage, accept4,
    getsockname, getsockopt, recvmsg, sockopt,
};

use crate::abi::Transport;

/// A client's connection, in blocking mode.
#[derive(Debug)]
pub enum Client {
    /// Over TCP, with the client's address.
    Tcp(TcpStream, SocketAddr),
    /// Over a socket in the file system, with the client's user id.
    Unix(UnixStream, u32),
}

impl Client {
    /// Takes a client from a listen socket without waiting; None when another worker was faster, or
    /// the client has gone (Q01).
    ///
    /// # Errors
    /// The process has no descriptor left, and the like.
    pub fn accept(listen: BorrowedFd<'_>, transport: Transport) -> io::Result<Option<Self>> {
        let Some(fd) = accept(listen)? else { return Ok(None) };
        let fd = if transport == Transport::Pass { receive(&fd)? } else { fd };
        Self::from_fd(fd).map(Some)
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

/// Takes a connection without waiting.
pub(crate) fn accept(listen: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept4(listen.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
        Ok(raw) => crate::sys::adopt(raw).map(Some),
        // The last few are errors of a client that is gone already (accept(2)).
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// A `pass` service gets its clients' connections over its own (master(5)).
fn receive(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut space = nix::cmsg_space!(std::os::fd::RawFd);
    let mut slices = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(&raw) = fds.first()
        {
            return crate::sys::adopt(raw);
        }
    }
    Err(io::Error::other("no connection was passed"))
}
