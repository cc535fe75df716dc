//! trigger - waking a service by its timer
//!
//! Nothing here waits: a connection that cannot be made at once is an error, told and tried again in
//! the next period (W18). The connection stays open until the worker closes it or the time is over.

use std::fs::OpenOptions;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr,
    connect, sendmsg, socket,
};
use nix::unistd::pipe2;
use worker_proto::abi::{TRIGGER_WAKEUP, Transport};
use worker_proto::sys;

use crate::owner::Owner;
use crate::service::Endpoint;

/// The wakeup byte and the null byte that ends a request.
const REQUEST: [u8; 2] = [TRIGGER_WAKEUP, 0];

/// A wakeup under way.
#[derive(Debug)]
pub struct Trigger {
    /// The connection; something happens on it when the worker is done with it.
    pub fd: OwnedFd,
    /// The request is still to be written, once the connection is there.
    pub unsent: bool,
}

/// Wakes a service. None means that it is done.
///
/// # Errors
/// The service cannot be reached, or its type has no wakeup.
pub fn wake(
    endpoint: &Endpoint,
    transport: Transport,
    owner: Owner,
) -> io::Result<Option<Trigger>> {
    match (endpoint, transport) {
        (Endpoint::Inet(address), _) => {
            let mut to = *address;
            if to.ip().is_unspecified() {
                to.set_ip(if to.is_ipv4() {
                    std::net::Ipv4Addr::LOCALHOST.into()
                } else {
                    std::net::Ipv6Addr::LOCALHOST.into()
                });
            }
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = stream(family)?;
            match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
                Ok(()) => {}
                Err(Errno::EINPROGRESS) => return Ok(Some(Trigger { fd, unsent: true })),
                Err(errno) => return Err(errno.into()),
            }
            request(&fd)?;
            Ok(Some(Trigger { fd, unsent: false }))
        }
        (Endpoint::Path(path), Transport::Fifo) => fifo(path, owner).map(|()| None),
        (Endpoint::Path(_), Transport::UnixDgram) => Err(Errno::EOPNOTSUPP.into()),
        (Endpoint::Path(path), Transport::Pass) => pass(path, owner).map(Some),
        (Endpoint::Path(path), Transport::Unix | Transport::Inet) => {
            let fd = dial(path, owner)?;
            request(&fd)?;
            Ok(Some(Trigger { fd, unsent: false }))
        }
    }
}

impl Trigger {
    /// The connection is there, or has failed.
    ///
    /// # Errors
    /// It has failed.
    pub fn connected(&mut self) -> io::Result<()> {
        self.unsent = false;
        request(&self.fd)
    }
}

fn request(fd: &OwnedFd) -> io::Result<()> {
    // Two bytes fit into the empty buffer of a new connection.
    sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(&REQUEST)], &[], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn stream(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    sys::set_high(socket(family, SockType::Stream, flags, None)?)
}

/// With the rights of the account whose directory it is, as connect(2) follows links.
fn dial(path: &str, owner: Owner) -> io::Result<OwnedFd> {
    let fd = stream(AddressFamily::Unix)?;
    let address = UnixAddr::new(path)?;
    owner.run(|| connect(fd.as_raw_fd(), &address))?;
    Ok(fd)
}

/// The directory belongs to the mail owner, so the pipe is opened with that account's rights and no
/// link is followed.
fn fifo(path: &str, owner: Owner) -> io::Result<()> {
    let mut file = owner.run(|| {
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        OpenOptions::new().write(true).custom_flags(flags).open(path)
    })?;
    file.write_all(&REQUEST[..1])
}

/// A `pass` service is handed an open connection: here a pipe with the request in it.
fn pass(path: &str, owner: Owner) -> io::Result<Trigger> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let fd = dial(path, owner)?;
    nix::unistd::write(&write, &REQUEST)?;
    let handed = [read.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&handed)];
    sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(Trigger { fd, unsent: false })
}
