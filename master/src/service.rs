//! service - what a line of master.cf defines

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_proto::abi::Transport;

/// A service as its line in master.cf defines it. Texts are shared: a table may have thousands of
/// lines, and the running master has them all, several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDef {
    /// What tells it from every other service.
    pub key: Key,
    /// Its name as the line has it.
    pub ext_name: Rc<str>,
    /// Its sockets are below `private/`, for the mail system alone.
    pub private: bool,
    /// Its workers drop their privileges (`-u`).
    pub unprivileged: bool,
    /// Its workers enter the queue directory for good (`-c`).
    pub chroot: bool,
    /// Its wakeup timer.
    pub wakeup: Option<Wakeup>,
    /// The most workers at a time; None is no limit.
    pub max_proc: Option<u32>,
    /// The program, below `daemon_directory`.
    pub command: Rc<str>,
    /// The program's own arguments.
    pub args: Vec<String>,
    /// Where it listens, in the order of its worker's descriptors.
    pub endpoints: Vec<Endpoint>,
    /// The line in master.cf.
    pub line: usize,
}

/// What tells a service from every other: transport and canonical name (E11).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The type column.
    pub transport: Transport,
    /// `25`, `[host]:25`, `private/name` or `public/name`.
    pub name: Rc<str>,
}

/// A wakeup timer (master(5), field "wakeup").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wakeup {
    /// How often.
    pub period: Duration,
    /// Only once the service has been used.
    pub conditional: bool,
}

/// A place to listen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    /// A TCP address.
    Inet(SocketAddr),
    /// A name in the file system, relative to the queue directory.
    Path(Rc<str>),
}

impl Endpoint {
    /// Whether clients of one can be clients of the other: they are the same, or one is all addresses
    /// of the other's port.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inet(a), Self::Inet(b)) => {
                let any = a.ip().is_unspecified() || b.ip().is_unspecified();
                a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && (any || a.ip() == b.ip())
            }
            _ => self == other,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Path(path) => path.fmt(f),
        }
    }
}

impl ServiceDef {
    /// Whether only this host can reach it (E14).
    #[must_use]
    pub fn local_only(&self) -> bool {
        match self.key.transport {
            Transport::Unix | Transport::UnixDgram | Transport::Fifo => true,
            Transport::Pass => false,
            Transport::Inet => self.endpoints.iter().all(|e| match e {
                Endpoint::Inet(address) => address.ip().is_loopback(),
                Endpoint::Path(_) => true,
            }),
        }
    }

    /// Whether its workers are told of stress: public, and more than one at a time (F01).
    #[must_use]
    pub fn stressable(&self) -> bool {
        !self.local_only() && self.max_proc.is_some_and(|max| max > 1)
    }
}
