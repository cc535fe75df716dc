//! orphans - workers of a master that was killed, and the sockets they have from it
//!
//! They serve their clients to the end, and until then listen on the sockets without accepting. The
//! next master takes the very same sockets over, with the clients that wait in them: binding would be
//! refused, or leave those clients to be reset.
//!
//! A process is one of them by its environment: any program can say so of itself. A socket is trusted
//! by who has made it, which the kernel knows: a TCP socket is root's, one in the file system the mail
//! owner's, and the file is still bound to it.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::socket::{SockType, SockaddrStorage, getsockname, getsockopt, sockopt};
use nix::sys::stat::{fstat, fstatat};
use nix::unistd::{Pid, geteuid};
use worker_proto::abi::{CONFIG_ENV, GENERATION_ENV, LISTEN_FD};
use worker_proto::sys;

use crate::config::Config;
use crate::listen::Listener;
use crate::service::Endpoint;

/// The sockets that workers of an earlier master of this configuration listen on. The caller has that
/// master's locks, so that it has ended, and is in the queue directory. Where the system lets nobody
/// look (without CAP_SYS_PTRACE, or before Linux 5.6) there are none.
#[must_use]
pub fn sockets(config: &Config) -> Vec<Listener> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|&pid| pid != Pid::this().as_raw()) else { continue };
        // Opened before anything is asked, so that all answers are of the same process.
        let Ok(process) = sys::pidfd_open(Pid::from_raw(pid)) else { continue };
        if !is_worker(&entry.path(), &config.directory) {
            continue;
        }
        for (number, socket) in listen_places(&entry.path()) {
            if seen.contains(&socket) {
                continue;
            }
            let Ok(fd) = sys::pidfd_getfd(process.as_fd(), number) else { continue };
            let Some((endpoint, file)) = place(&fd, config) else { continue };
            let Ok(fd) = sys::set_high(fd) else { continue };
            seen.insert(socket);
            found.push(Listener::adopt(endpoint, fd, file));
        }
    }
    found
}

/// Whether a process was started with the environment of this configuration's workers.
fn is_worker(process: &Path, directory: &Path) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    let mut lines = environment.split(|&byte| byte == 0);
    let has = |name: &str, value: &[u8], line: &[u8]| {
        let rest = line.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        rest.is_some_and(|rest| value.is_empty() || rest == value)
    };
    let directory = directory.as_os_str().as_bytes();
    lines.clone().any(|line| has(GENERATION_ENV, b"", line))
        && lines.any(|line| has(CONFIG_ENV, directory, line))
}

/// The sockets of a process where workers have theirs: number and name of each.
fn listen_places(process: &Path) -> Vec<(i32, String)> {
    let places = LISTEN_FD..=LISTEN_FD + i32::try_from(sys::MAX_LISTEN).unwrap_or(0);
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
            (places.contains(&number) && target.starts_with("socket:")).then_some((number, target))
        })
        .collect();
    found.sort();
    found
}

/// Where a socket listens, and the file that is its name, if it is one that the master has made.
fn place(fd: &OwnedFd, config: &Config) -> Option<(Endpoint, Option<(u64, u64)>)> {
    let takes_clients = getsockopt(fd, sockopt::AcceptConn) == Ok(true);
    let datagrams = getsockopt(fd, sockopt::SockType) == Ok(SockType::Datagram);
    let maker = fstat(fd).ok()?.st_uid;
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    if let Some(unix) = name.as_unix_addr() {
        let path = unix.path()?.to_str()?;
        // A master that is not root makes everything as itself.
        let owner = if geteuid().is_root() { config.owner.uid } else { geteuid() };
        let file = fstat(sys::unix_socket_file(fd.as_fd()).ok()?).ok()?;
        let named = fstatat(AT_FDCWD, path, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        let same = (file.st_dev, file.st_ino) == (named.st_dev, named.st_ino);
        let ours = maker == owner.as_raw() && same && (takes_clients || datagrams);
        return ours.then(|| (Endpoint::Path(path.into()), Some((named.st_dev, named.st_ino))));
    }
    let address = match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::from((v4.ip(), v4.port())),
        (_, Some(v6)) => SocketAddr::from((v6.ip(), v6.port())),
        _ => return None,
    };
    (takes_clients && maker == geteuid().as_raw()).then_some((Endpoint::Inet(address), None))
}
