//! names - hosts and ports by name, for the reading of a table
//!
//! At the start hosts are asked for directly. While the master serves it never asks: a helper process
//! does, and its answers are put in here before the table is read ([`Names::missing`],
//! [`Names::learn`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::table::Resolver;

/// What is known about names.
#[derive(Debug, Default)]
pub struct Names {
    may_ask: bool,
    hosts: RefCell<BTreeMap<String, Vec<IpAddr>>>,
    missing: RefCell<BTreeSet<String>>,
    ports: RefCell<BTreeMap<String, u16>>,
    protocols: Cell<(bool, bool)>,
}

impl Names {
    /// Nothing is known; hosts are asked for as needed, which can take long.
    #[must_use]
    pub fn asking() -> Self {
        Self { may_ask: true, ..Self::default() }
    }

    /// Only what [`Names::learn`] is told is known.
    #[must_use]
    pub fn silent() -> Self {
        Self::default()
    }

    /// Hosts that were needed and not known.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.missing.borrow().iter().cloned().collect()
    }

    /// Puts in the addresses of a host; none are an answer too.
    pub fn learn(&self, host: &str, addresses: Vec<IpAddr>) {
        self.hosts.borrow_mut().insert(host.to_owned(), addresses);
        self.missing.borrow_mut().remove(host);
    }

    /// Takes over `known_tcp_ports` and `inet_protocols`. A protocol that the kernel does not have
    /// is not in use.
    pub fn configure(&self, known_ports: &[String], protocols: &[String]) {
        let mut ports = self.ports.borrow_mut();
        ports.clear();
        for item in known_ports {
            // `name=number`, or `name=other=number` for several names of one port.
            let mut parts: Vec<&str> = item.split('=').collect();
            if let Some(number) = parts.pop().and_then(|n| n.parse().ok()) {
                ports.extend(parts.into_iter().map(|name| (name.to_owned(), number)));
            }
        }
        let has = |name| protocols.iter().any(|p| p == name || p == "all");
        let works = |family| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).is_ok();
        let v6 = has("ipv6") && works(AddressFamily::Inet6);
        self.protocols.set((has("ipv4") && works(AddressFamily::Inet), v6));
    }

    /// Whether IPv4 and IPv6 are in use.
    #[must_use]
    pub fn protocols(&self) -> (bool, bool) {
        self.protocols.get()
    }

    /// The addresses of a host or of a written address, of the protocols in use.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let (v4, v6) = self.protocols.get();
        let wanted = |a: &IpAddr| if a.is_ipv4() { v4 } else { v6 };
        if let Ok(address) = name.parse::<IpAddr>() {
            return Some(address).into_iter().filter(wanted).collect();
        }
        if let Some(known) = self.hosts.borrow().get(name) {
            return known.iter().copied().filter(wanted).collect();
        }
        if !self.may_ask {
            self.missing.borrow_mut().insert(name.to_owned());
            return Vec::new();
        }
        let addresses = ask(name);
        let found = addresses.iter().copied().filter(wanted).collect();
        self.hosts.borrow_mut().insert(name.to_owned(), addresses);
        found
    }
}

impl Resolver for Names {
    fn host(&self, name: &str) -> Vec<IpAddr> {
        self.addresses(name)
    }

    fn port(&self, name: &str) -> Option<u16> {
        let known = self.ports.borrow().get(name).copied();
        known.or_else(|| etc_services(&fs::read_to_string("/etc/services").ok()?, name))
    }
}

/// The option with which the master runs itself to ask for the names that follow; it prints each
/// with its addresses.
pub const RESOLVE_OPTION: &str = "--resolve";

/// Asks the system for a host's addresses; empty when there are none.
#[must_use]
pub fn ask(host: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in (host, 0).to_socket_addrs().into_iter().flatten() {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    addresses
}

/// A line of services(5): name, port/protocol, aliases.
fn etc_services(text: &str, name: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let (first, port) = (words.next()?, words.next()?);
        let number = port.strip_suffix("/tcp")?.parse().ok()?;
        (first == name || words.any(|alias| alias == name)).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_from_the_parameter_and_from_services() {
        let names = Names::silent();
        names.configure(&["smtps=submissions=465".to_owned()], &["all".to_owned()]);
        assert_eq!(names.port("submissions"), Some(465));
        let text = "# x\nsmtp 25/tcp mail\nsnmp 161/udp\n";
        assert_eq!(etc_services(text, "mail"), Some(25));
        assert_eq!(etc_services(text, "snmp"), None);
    }

    #[test]
    fn a_silent_one_tells_what_it_misses() {
        let names = Names::silent();
        names.configure(&[], &["ipv4".to_owned()]);
        assert_eq!(names.addresses("relay.example"), Vec::<IpAddr>::new());
        assert_eq!(names.missing(), ["relay.example"]);
        names.learn("relay.example", vec!["127.0.0.2".parse().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(names.addresses("relay.example"), ["127.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.missing(), Vec::<String>::new());
    }
}
