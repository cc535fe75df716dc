//! relay - the ordered list of relays: `relayhost = [a]:587, [b]:2525, c.example:25`
//!
//! The first is used for as long as it works; the next ones are there for when it does not.
//!
//! # Bugs
//! A name without brackets asks for its MX hosts in Postfix; here it is its own address, as with
//! brackets.

use std::net::{SocketAddr, ToSocketAddrs};

use worker_proto::sys::errno_text;

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Its name, as written in `relayhost`.
    pub name: String,
    /// Name or address of the host.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Where to connect, once [resolved](Relay::resolve).
    pub addresses: Vec<SocketAddr>,
    /// Why it has no address.
    pub problem: String,
}

impl Relay {
    /// Reads one word of the list.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(word: &str, default_port: u16) -> Result<Self, String> {
        let (host, rest) = match word.strip_prefix('[') {
            Some(inside) => inside.split_once(']').ok_or("missing \"]\"")?,
            None => word.split_at(word.rfind(':').unwrap_or(word.len())),
        };
        let port = match rest.strip_prefix(':') {
            Some(digits) => digits.parse().ok().filter(|&p| p > 0),
            None => rest.is_empty().then_some(default_port),
        };
        let port = port.ok_or_else(|| format!("\"{rest}\" is not \":port\""))?;
        let host = host.strip_prefix("ipv6:").unwrap_or(host);
        if host.is_empty() || host.contains(['[', ']', '/']) {
            return Err("a relay is [name]:port or [address]:port".to_owned());
        }
        Ok(Self {
            name: word.to_owned(),
            host: host.to_owned(),
            port,
            addresses: Vec::new(),
            problem: String::new(),
        })
    }

    /// Asks for the addresses; done before the jail, where the resolver's files are.
    pub fn resolve(&mut self) {
        match (self.host.as_str(), self.port).to_socket_addrs() {
            Ok(addresses) => self.addresses = addresses.collect(),
            Err(e) => self.problem = format!("host {}: {}", self.host, errno_text(&e)),
        }
        if self.addresses.is_empty() && self.problem.is_empty() {
            self.problem = format!("host {}: no address", self.host);
        }
    }
}

/// Reads the list.
///
/// # Errors
/// What is wrong with the first bad word, with the word.
pub fn parse_list(words: &[String], default_port: u16) -> Result<Vec<Relay>, String> {
    let relay = |word: &String| {
        Relay::parse(word, default_port).map_err(|problem| format!("\"{word}\": {problem}"))
    };
    words.iter().map(relay).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(word: &str) -> Option<(String, u16)> {
        Relay::parse(word, 25).ok().map(|r| (r.host, r.port))
    }

    #[test]
    fn s1_relays_with_and_without_brackets() {
        for (word, host, port) in [
            ("[a.example]:587", "a.example", 587),
            ("[a.example]", "a.example", 25),
            ("a.example:2525", "a.example", 2525),
            ("a.example", "a.example", 25),
            ("[127.0.0.1]:10025", "127.0.0.1", 10025),
            ("[::1]:26", "::1", 26),
            ("[ipv6:::1]", "::1", 25),
        ] {
            assert_eq!(parse(word), Some((host.to_owned(), port)), "{word}");
        }
        for bad in ["", "[a", "[a]x", "[a]:", "[a]:0", "[a]:smtp", "[a]:70000", "a:b", "[]:25"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        let words = ["[a]:1".to_owned(), "[b".to_owned()];
        assert_eq!(parse_list(&words, 25), Err("\"[b\": missing \"]\"".to_owned()));
    }

    #[test]
    fn an_address_resolves_to_itself_and_nonsense_says_why() {
        let mut relay = Relay::parse("[127.0.0.1]:26", 25).unwrap();
        relay.resolve();
        assert_eq!(relay.addresses, ["127.0.0.1:26".parse().unwrap()]);
        let mut relay = Relay::parse("[no..such..name]:26", 25).unwrap();
        relay.resolve();
        assert!(relay.addresses.is_empty());
        assert!(relay.problem.starts_with("host no..such..name: "), "{}", relay.problem);
    }
}
