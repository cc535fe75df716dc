//! listen - the sockets and pipes on which clients knock
//!
//! The master binds and watches them and hands them to workers; it never accepts (G08).
//!
//! Workers have copies of the sockets, so that closing one here ends nothing: it goes on to take
//! clients for as long as any worker has it. Hence a socket that is wanted again is used again, and one
//! that is not is ended for everybody, when no client waits in it ([`Listener::end`]).

use std::fs;
use std::io::ErrorKind::AddrInUse;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, UnixAddr, bind,
    getsockopt, listen, setsockopt, shutdown, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use worker_proto::abi::Transport;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::files::make_free;
use worker_proto::sys;

use crate::owner::Owner;
use crate::service::Endpoint;

/// A bound endpoint.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    fd: OwnedFd,
    /// Device and inode of its name in the file system.
    file: Option<(u64, u64)>,
    /// Since when it is no endpoint of its service any more: it serves the clients that wait in it.
    pub left: Option<Time>,
}

/// Why no client can connect to what is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A worker, which shares it, has shut it down (shutdown(2)).
    Shut,
    /// Its name in the file system is no more, or another's.
    Lost,
}

impl Trouble {
    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Shut => "a worker has shut down the socket",
            Self::Lost => "the socket file was removed or replaced",
        }
    }
}

impl Listener {
    /// Binds an endpoint; the queue directory is the working directory. What is in the way of a
    /// socket in the file system is removed, as it is left over from a master that has ended. `old`
    /// are sockets of ours that nobody listens on from now on: the same one is taken from there, and
    /// one that covers more or fewer addresses of the port is not in the way.
    ///
    /// # Errors
    /// The address is in use or not of this host, or the name cannot be made.
    pub fn bind(
        endpoint: &Endpoint,
        transport: Transport,
        backlog: u32,
        owner: Owner,
        old: &mut Vec<Self>,
    ) -> Result<Self, Fault> {
        let same = |l: &Self| l.endpoint == *endpoint && l.is_of(transport);
        if let Some(at) = old.iter().position(same) {
            let listener = old.swap_remove(at);
            listener.hold(false);
            listener.set_backlog(backlog);
            return Ok(Self { left: None, ..listener });
        }
        let fd = match endpoint {
            Endpoint::Inet(address) => beside(*address, backlog, old).map_err(|e| {
                Fault::io(format!("bind {} port {}", address.ip(), address.port()), &e)
            }),
            Endpoint::Path(path) => owner.run(|| match transport {
                Transport::Fifo => fifo(path),
                Transport::UnixDgram => unix(path, SockType::Datagram, None),
                Transport::Unix | Transport::Pass | Transport::Inet => {
                    unix(path, SockType::Stream, Some(backlog))
                }
            }),
        }?;
        let fd = sys::set_high(fd).map_err(|e| Fault::io("dup", &e))?;
        Ok(Self::adopt(endpoint.clone(), fd, file(endpoint)))
    }

    /// An endpoint that another program has bound in this process, under the name that was this file
    /// then.
    #[must_use]
    pub const fn adopt(endpoint: Endpoint, fd: OwnedFd, file: Option<(u64, u64)>) -> Self {
        Self { endpoint, fd, file, left: None }
    }

    /// Device and inode of its name in the file system.
    #[must_use]
    pub const fn file(&self) -> Option<(u64, u64)> {
        self.file
    }

    /// Whether a service of this type can listen on it.
    fn is_of(&self, transport: Transport) -> bool {
        let wanted = match transport {
            Transport::Fifo => return false,
            Transport::UnixDgram => SockType::Datagram,
            Transport::Unix | Transport::Pass | Transport::Inet => SockType::Stream,
        };
        getsockopt(&self.fd, sockopt::SockType) == Ok(wanted)
    }

    /// Whether it is a TCP socket.
    #[must_use]
    pub const fn is_inet(&self) -> bool {
        matches!(self.endpoint, Endpoint::Inet(_))
    }

    /// Lets no new connection begin, or again; those that have begun go on. The clients try again
    /// within seconds, and find who listens then.
    pub fn hold(&self, on: bool) {
        if self.is_inet() {
            // Without room for the filter a client may be reset in the moment until the end.
            let _ = sys::hold_connections(self.fd.as_fd(), on);
        }
    }

    /// Whether no client waits in it, and none is on its way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let Endpoint::Inet(address) = &self.endpoint else {
            return true;
        };
        let table = if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        self.queue().is_none_or(|(waiting, _)| waiting == 0)
            && !fs::read_to_string(table).is_ok_and(|text| is_beginning(&text, address.port()))
    }

    /// Ends its listening, in every process that has it: the next client is refused, and the port is
    /// free. A client that waits in it is reset.
    pub fn end(self) {
        if self.is_inet() {
            // It listens, so this cannot fail.
            let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Read);
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Changes the length of the queue of clients (W21).
    pub fn set_backlog(&self, backlog: u32) {
        // A datagram socket or a pipe has no queue of clients and refuses, as it should.
        if let Ok(backlog) = queue_length(backlog) {
            let _ = listen(&self.fd, backlog);
        }
    }

    /// How many clients wait and how many may, where the kernel tells (W24).
    #[must_use]
    pub fn queue(&self) -> Option<(u32, u32)> {
        sys::tcp_listen_queue(self.fd.as_fd()).ok()
    }

    /// Why no client can connect any more, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        // POLLRDHUP is the shutdown of one direction. nix has no name for it, and gives no answer when it
        // is part of one.
        let half = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN | half)];
        let shut = |seen: PollFlags| seen.intersects(PollFlags::POLLHUP | half);
        if poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_none_or(shut) {
            return Some(Trouble::Shut);
        }
        let known = self.file.is_some();
        (known && self.file != file(&self.endpoint)).then_some(Trouble::Lost)
    }

    /// Removes its name from the file system. A name that was meanwhile bound by another is left: it
    /// is known by its inode.
    pub fn unlink(&self) {
        if let Endpoint::Path(path) = &self.endpoint
            && self.file.is_some()
            && self.file == file(&self.endpoint)
        {
            let _ = fs::remove_file(&**path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Device and inode of what has the name of an endpoint.
fn file(endpoint: &Endpoint) -> Option<(u64, u64)> {
    let Endpoint::Path(path) = endpoint else {
        return None;
    };
    fs::symlink_metadata(&**path).ok().map(|found| (found.dev(), found.ino()))
}

/// Binds a TCP address where sockets of ours may be in the way, but no other program's. Both sides
/// share the port only meanwhile: another program of root could join later.
fn beside(address: SocketAddr, backlog: u32, old: &[Listener]) -> io::Result<OwnedFd> {
    let endpoint = Endpoint::Inet(address);
    let in_the_way: Vec<_> = old.iter().filter(|l| l.endpoint.overlaps(&endpoint)).collect();
    let alone = inet(address, backlog, false);
    if in_the_way.is_empty() || !alone.as_ref().is_err_and(|e| e.kind() == AddrInUse) {
        return alone;
    }
    let share =
        |on: bool| in_the_way.iter().try_for_each(|l| setsockopt(&l.fd, sockopt::ReusePort, &on));
    share(true)?;
    let bound = inet(address, backlog, true);
    share(false)?;
    if let Ok(fd) = &bound {
        setsockopt(fd, sockopt::ReusePort, &false)?;
    }
    bound
}

/// Whether a table of the kernel (proc_net_tcp) has a connection to a port that has begun (SYN_RECV)
/// and is in no queue yet.
fn is_beginning(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().take(4).collect();
        matches!(words[..], [_, local, _, "03"] if local.ends_with(&port))
    })
}

fn inet(address: SocketAddr, backlog: u32, share: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if share {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, queue_length(backlog)?)?;
    Ok(fd)
}

/// Access is the directory's matter; everybody who reaches the socket may use it (G01).
fn unix(path: &str, kind: SockType, backlog: Option<u32>) -> Result<OwnedFd, Fault> {
    let make = || -> io::Result<OwnedFd> {
        make_free(Path::new(path))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, kind, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        if let Some(backlog) = backlog {
            listen(&fd, queue_length(backlog)?)?;
        }
        Ok(fd)
    };
    make().map_err(|e| Fault::io(format!("bind {path}"), &e))
}

/// Opened for reading and writing, so that it never has end of file (G03).
fn fifo(path: &str) -> Result<OwnedFd, Fault> {
    let make = || -> io::Result<OwnedFd> {
        make_free(Path::new(path))?;
        mkfifo(path, Mode::from_bits_truncate(0o622))?;
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o622))?;
        let mut dregs = [0; 4096];
        while file.read(&mut dregs).is_ok_and(|n| n > 0) {}
        Ok(file.into())
    };
    make().map_err(|e| Fault::io(format!("create {path}"), &e))
}

fn queue_length(backlog: u32) -> nix::Result<Backlog> {
    Backlog::new(i32::try_from(backlog).unwrap_or(i32::MAX).min(i32::from(u16::MAX)))
        .or(Ok(Backlog::MAXCONN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_has_begun_is_seen_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
            0: 0100007F:09DD 00000000:0000 0A 0\n   \
            1: 0100007F:09DD 0100007F:8001 01 0\n   \
            2: 0100007F:0019 0100007F:8002 03 0\n";
        assert!(is_beginning(table, 25));
        assert!(!is_beginning(table, 2525), "it listens, and one is there");
    }

    #[test]
    fn the_addresses_of_a_port_overlap_where_one_is_all() {
        let at = |text: &str| Endpoint::Inet(text.parse().unwrap());
        for (a, b, overlap) in [
            ("127.0.0.1:25", "127.0.0.1:25", true),
            ("127.0.0.1:25", "0.0.0.0:25", true),
            ("127.0.0.1:25", "127.0.0.2:25", false),
            ("127.0.0.1:25", "0.0.0.0:26", false),
            ("127.0.0.1:25", "[::]:25", false),
            ("[::1]:25", "[::]:25", true),
        ] {
            assert_eq!(at(a).overlaps(&at(b)), overlap, "{a} {b}");
            assert_eq!(at(b).overlaps(&at(a)), overlap, "{b} {a}");
        }
    }
}
