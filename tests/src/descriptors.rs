//! descriptors - what the open descriptors of a process are, as /proc shows them

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::process;

/// An open descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// What it is.
    pub what: What,
    /// It is O_NONBLOCK.
    pub nonblock: bool,
    /// It is O_CLOEXEC.
    pub cloexec: bool,
}

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// `read` or `write` end of a pipe without a name.
    Pipe(&'static str),
    /// A socket of the file system's family: its type, whether it listens, its name if it has one.
    Unix(&'static str, bool, String),
    /// A TCP socket and its own address; whether it listens.
    Tcp(SocketAddr, bool),
    /// Everything else, as the kernel names it.
    Other(String),
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listens = |yes: bool| if yes { " listening" } else { "" };
        write!(f, "{} ", self.number)?;
        match &self.what {
            What::Pipe(end) => write!(f, "pipe {end}")?,
            What::Unix(kind, listening, name) => {
                write!(f, "unix {kind}{}", listens(*listening))?;
                if !name.is_empty() {
                    write!(f, " {name}")?;
                }
            }
            What::Tcp(address, listening) => write!(f, "tcp{} {address}", listens(*listening))?,
            What::Other(name) => write!(f, "{name}")?,
        }
        write!(f, "{}", if self.nonblock { " nonblock" } else { "" })?;
        write!(f, "{}", if self.cloexec { " cloexec" } else { "" })
    }
}

/// How often the kernel's tables are read again for a socket that is in none. A socket of a family
/// that is not known here is in none.
const TRIES: usize = 10;

/// The descriptors of a process, in order, without the one that reads the list.
#[must_use]
pub fn of(pid: i32) -> Vec<Descriptor> {
    let mut found = Vec::new();
    for _ in 0..TRIES {
        found = look(pid);
        // While others open and close sockets, a table may come without some that are there.
        let lost = |d: &Descriptor| matches!(&d.what, What::Other(w) if w.starts_with("socket:"));
        if !found.iter().any(lost) {
            break;
        }
    }
    found
}

fn look(pid: i32) -> Vec<Descriptor> {
    let mut all = process::descriptors(pid).unwrap_or_default();
    all.retain(|(_, target)| !target.ends_with("/fd"));
    let mut sockets = unix_sockets();
    // The kernel goes through a large table for these: only if there is one.
    let lost = |target: &str| target.starts_with("socket:") && !sockets.contains_key(target);
    if all.iter().any(|(_, target)| lost(target)) {
        sockets.extend(tcp_sockets());
    }
    let descriptor = |(number, target): (i32, String)| {
        let flags = flags(pid, number);
        let what = if target.starts_with("pipe:") {
            What::Pipe(if flags & libc::O_ACCMODE == libc::O_RDONLY { "read" } else { "write" })
        } else {
            sockets.get(&target).cloned().unwrap_or(What::Other(target))
        };
        let (nonblock, cloexec) = (flags & libc::O_NONBLOCK != 0, flags & libc::O_CLOEXEC != 0);
        Descriptor { number, what, nonblock, cloexec }
    };
    all.into_iter().map(descriptor).collect()
}

fn flags(pid: i32, number: i32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
    let octal = text.lines().find_map(|line| line.strip_prefix("flags:"));
    octal.and_then(|n| i32::from_str_radix(n.trim(), 8).ok()).unwrap_or(0)
}

/// What a descriptor's link names, and what it is.
type Sockets = HashMap<String, What>;

fn table(name: &str) -> String {
    fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default()
}

/// Every socket of the file system's family.
fn unix_sockets() -> Sockets {
    let mut found = Sockets::new();
    for line in table("unix").lines().skip(1) {
        // Num RefCount Protocol Flags Type St Inode Path
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, flags, kind, _, inode, path @ ..] = words.as_slice() else { continue };
        let kind = match *kind {
            "0001" => "stream",
            "0002" => "datagram",
            _ => "seqpacket",
        };
        // __SO_ACCEPTCON of the kernel.
        let what = What::Unix(kind, *flags == "00010000", path.join(" "));
        found.insert(format!("socket:[{inode}]"), what);
    }
    found
}

/// Every TCP socket.
fn tcp_sockets() -> Sockets {
    let mut found = Sockets::new();
    for line in table("tcp").lines().chain(table("tcp6").lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = words.as_slice() else { continue };
        let Some(address) = address(local) else { continue };
        found.insert(format!("socket:[{inode}]"), What::Tcp(address, *state == "0A"));
    }
    found
}

/// `0100007F:0019` is 127.0.0.1:25: the address in words of the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let word =
        |at: usize| u32::from_str_radix(host.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if host.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        let bytes: [u8; 16] = words.concat().try_into().ok()?;
        IpAddr::from(Ipv6Addr::from(bytes))
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_listener_is_seen_with_its_address() {
        let listener = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        let own = of(nix::unistd::getpid().as_raw())
            .into_iter()
            .find(|d| d.number == listener.as_raw_fd())
            .unwrap();
        assert_eq!(own.what, What::Tcp(listener.local_addr().unwrap(), true));
        assert!(own.nonblock && own.cloexec);
    }

    #[test]
    fn an_address_is_read() {
        assert_eq!(address("0100007F:0019"), "127.0.0.1:25".parse().ok());
        assert_eq!(address("00000000000000000000000001000000:0019"), "[::1]:25".parse().ok());
    }
}
