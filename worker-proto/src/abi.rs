//! abi - the numbers and names a master and a worker agree on
//!
//! These are Postfix's, so that its daemons run under our master and our workers under its.
//! Nothing here does anything; it is the one place where the values stand.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Read end of the flow pipe that all workers of one master share.
pub const FLOW_READ_FD: RawFd = 3;
/// Write end of the flow pipe.
pub const FLOW_WRITE_FD: RawFd = 4;
/// Status channel: the worker writes [`crate::status::StatusRecord`]s; it becomes readable (end of
/// file) when the master has gone or has retired the worker.
pub const STATUS_FD: RawFd = 5;
/// The first listen socket; further ones follow without a gap.
pub const LISTEN_FD: RawFd = 6;

/// Environment variable that carries the [`Generation`].
pub const GENERATION_ENV: &str = "GENERATION";
/// Environment variable that names the configuration directory.
pub const CONFIG_ENV: &str = "MAIL_CONFIG";
/// Environment variable that asks for verbose logging.
pub const VERBOSE_ENV: &str = "MAIL_VERBOSE";

/// The byte a master writes to wake a service by its timer.
pub const TRIGGER_WAKEUP: u8 = b'W';
/// The most bytes a trigger request may have; a server ignores what it does not know.
pub const TRIGGER_BUF: usize = 1024;

/// Option letters of a worker's command line, in the form of getopt(3).
pub const WORKER_OPTIONS: &str = "cdDi:lm:n:o:r:s:St:uvVz";

/// Number of a worker process in the life of one master: the first is 1. Written in octal without a
/// prefix in the environment.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:o}", self.0)
    }
}

impl FromStr for Generation {
    type Err = BadGeneration;

    /// # Errors
    /// The text is empty, has another character than an octal digit, or does not fit.
    fn from_str(text: &str) -> Result<Self, BadGeneration> {
        if text.is_empty() || !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            return Err(BadGeneration);
        }
        u32::from_str_radix(text, 8).map(Self).map_err(|_| BadGeneration)
    }
}

/// A generation was not an octal number of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadGeneration;

impl fmt::Display for BadGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an octal number of at most 32 bits")
    }
}

/// The type column of master.cf: how clients reach a service (master(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// A TCP socket.
    Inet,
    /// A stream socket in the file system.
    Unix,
    /// A datagram socket in the file system.
    UnixDgram,
    /// A named pipe.
    Fifo,
    /// A stream socket in the file system over which open connections are passed.
    Pass,
}

impl Transport {
    /// Every transport, in the order of the manual.
    pub const ALL: [Self; 5] = [Self::Inet, Self::Unix, Self::UnixDgram, Self::Fifo, Self::Pass];

    /// The word in master.cf and after the worker option `-t`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Unix => "unix",
            Self::UnixDgram => "unix-dgram",
            Self::Fifo => "fifo",
            Self::Pass => "pass",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Transport {
    type Err = BadTransport;

    /// # Errors
    /// The text is no transport; upper case counts as another word.
    fn from_str(text: &str) -> Result<Self, BadTransport> {
        Self::ALL.into_iter().find(|t| t.name() == text).ok_or(BadTransport)
    }
}

/// A word was not the name of a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadTransport;

impl fmt::Display for BadTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one of inet, unix, unix-dgram, fifo, pass")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_is_octal_without_prefix() {
        assert_eq!(Generation(8).to_string(), "10");
        assert_eq!("10".parse(), Ok(Generation(8)));
        assert_eq!("37777777777".parse(), Ok(Generation(u32::MAX)));
        for bad in ["", "8", "0x1", "-1", "+1", " 1", "40000000000"] {
            assert_eq!(bad.parse::<Generation>(), Err(BadGeneration), "{bad:?}");
        }
    }

    #[test]
    fn transport_names_are_case_sensitive() {
        for t in Transport::ALL {
            assert_eq!(t.name().parse(), Ok(t));
        }
        assert_eq!("INET".parse::<Transport>(), Err(BadTransport));
    }
}
