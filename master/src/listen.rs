//! listen - the sockets and pipes on which clients knock
//!
//! The master binds and watches them and hands them to workers; it never accepts (G08).

use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, listen,
    setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use worker_proto::abi::Transport;
use worker_proto::diagnostic::Fault;
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
}

impl Listener {
    /// Binds an endpoint; the queue directory is the working directory. What is in the way of a
    /// socket in the file system is removed, as it is left over from a master that has ended.
    ///
    /// # Errors
    /// The address is in use or not of this host, or the name cannot be made.
    pub fn bind(
        endpoint: &Endpoint,
        transport: Transport,
        backlog: u32,
        owner: Owner,
    ) -> Result<Self, Fault> {
        let fd = match endpoint {
            Endpoint::Inet(address) => inet(*address, backlog).map_err(|e| {
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
        Ok(Self { endpoint: endpoint.clone(), fd, file: file(endpoint) })
    }

    /// An endpoint that another program has bound in this process, under the name that was this file
    /// then.
    #[must_use]
    pub const fn adopt(endpoint: Endpoint, fd: OwnedFd, file: Option<(u64, u64)>) -> Self {
        Self { endpoint, fd, file }
    }

    /// Device and inode of its name in the file system.
    #[must_use]
    pub const fn file(&self) -> Option<(u64, u64)> {
        self.file
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

    /// Removes its name from the file system. A name that was meanwhile bound by another is left: it
    /// is known by its inode.
    pub fn unlink(&self) {
        if let Endpoint::Path(path) = &self.endpoint
            && self.file.is_some()
            && self.file == file(&self.endpoint)
        {
            let _ = fs::remove_file(path);
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
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn inet(address: SocketAddr, backlog: u32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, queue_length(backlog)?)?;
    Ok(fd)
}

/// Access is the directory's matter; everybody who reaches the socket may use it (G01).
fn unix(path: &str, kind: SockType, backlog: Option<u32>) -> Result<OwnedFd, Fault> {
    let make = || -> io::Result<OwnedFd> {
        remove(path)?;
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
        remove(path)?;
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

fn remove(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn queue_length(backlog: u32) -> nix::Result<Backlog> {
    Backlog::new(i32::try_from(backlog).unwrap_or(i32::MAX).min(i32::from(u16::MAX)))
        .or(Ok(Backlog::MAXCONN))
}
