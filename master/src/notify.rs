//! notify - what a service manager hears (sd_notify(3))
//!
//! The protocol is a datagram of `NAME=value` lines to the socket in NOTIFY_SOCKET. It is a courtesy:
//! a manager that is gone, or does not read, is no trouble of ours, and nobody waits for it.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use worker_proto::clock::Time;

/// The service manager that has started this process, if one has.
#[derive(Debug, Default)]
pub struct Manager {
    address: Option<SocketAddr>,
    watchdog: Option<Duration>,
    /// The last status, so that it is sent once.
    status: String,
}

impl Manager {
    /// The manager that the environment names.
    #[must_use]
    pub fn of_environment() -> Self {
        let variable = |name| env::var_os(name).map(|v| v.to_string_lossy().into_owned());
        let Some(path) = env::var_os("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let address = match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        let watchdog = interval(
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
            process::id(),
        );
        Self { address: address.ok(), watchdog, status: String::new() }
    }

    /// How often it wants to hear [`Manager::alive`] at the least; None is never.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Whether anybody listens.
    #[must_use]
    pub const fn listens(&self) -> bool {
        self.address.is_some()
    }

    /// The master serves.
    pub fn ready(&self) {
        self.tell(&format!("READY=1\nMAINPID={}", process::id()));
    }

    /// A reload begins; [`Manager::ready`] follows.
    pub fn reloading(&self, now: Time) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.since_start().as_micros()));
    }

    /// The master ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// The loop turns.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// One line for people, sent when it is another than before.
    pub fn status(&mut self, text: String) {
        if text != self.status {
            self.tell(&format!("STATUS={text}"));
            self.status = text;
        }
    }

    fn tell(&self, state: &str) {
        let Some(address) = &self.address else {
            return;
        };
        let send = || -> io::Result<usize> {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.send_to_addr(state.as_bytes(), address)
        };
        let _ = send();
    }
}

/// Half of the time that the manager allows, when it means this process.
fn interval(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let usec: u64 = usec?.parse().ok().filter(|&n| n > 0)?;
    Some(Duration::from_micros(usec) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let half = Some(Duration::from_secs(15));
        assert_eq!(interval(Some("30000000"), None, 7), half);
        assert_eq!(interval(Some("30000000"), Some("7"), 7), half);
        assert_eq!(interval(Some("30000000"), Some("8"), 7), None);
        assert_eq!(interval(Some("0"), None, 7), None);
        assert_eq!(interval(None, None, 7), None);
    }
}
