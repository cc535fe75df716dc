//! networks - which clients may hand in mail: `mynetworks = 127.0.0.0/8 [::1]/128`

use std::net::IpAddr;

/// A list of networks; the first that holds an address decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
    allowed: bool,
}

impl Networks {
    /// Reads the words of the list: `address`, `address/bits`, IPv6 with or without square brackets,
    /// a `!` before what is not to be allowed.
    ///
    /// # Errors
    /// What is wrong with the first bad word, with the word.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        words.iter().map(|w| Network::parse(w)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an address is in the list.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().find(|n| n.holds(address)).is_some_and(|n| n.allowed)
    }
}

impl Network {
    fn parse(word: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("\"{word}\": {why}");
        let (plain, allowed) = match word.strip_prefix('!') {
            Some(plain) => (plain, false),
            None => (word, true),
        };
        let (address, bits) = match plain.rsplit_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (plain, None),
        };
        let address =
            address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = address
            .parse()
            .map_err(|_| bad("not an address, as in 192.168.0.0/16 or [::1]/128"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|&b| b <= most),
            None => Some(most),
        };
        let bits =
            bits.ok_or_else(|| bad(&format!("a number of bits from 0 to {most} after \"/\"")))?;
        let network = Self { address, bits, allowed };
        if network.masked(address) != raw(address) {
            // As in Postfix: most likely the number is wrong.
            return Err(bad("the address has bits set behind its network"));
        }
        Ok(network)
    }

    fn holds(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == raw(self.address)
    }

    fn masked(&self, address: IpAddr) -> u128 {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let host = width - self.bits;
        let mask = u128::MAX.checked_shl(host).unwrap_or(0);
        raw(address) & mask
    }
}

fn raw(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(text: &str) -> Result<Networks, String> {
        Networks::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn m4_only_mynetworks_may_send() {
        let n = networks("!10.1.0.0/16 127.0.0.0/8 10.0.0.0/8 [::1]/128 2001:db8::/32 192.0.2.7");
        let n = n.unwrap();
        for (address, allowed) in [
            ("127.0.0.1", true),
            ("127.255.255.255", true),
            ("128.0.0.1", false),
            ("10.2.3.4", true),
            ("10.1.3.4", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::1", true),
            ("::2", false),
            ("2001:db8:ffff::", true),
            ("::ffff:127.0.0.1", true),
        ] {
            assert_eq!(n.contains(address.parse().unwrap()), allowed, "{address}");
        }
        let all = networks("0.0.0.0/0 ::/0").unwrap();
        assert!(
            all.contains("8.8.8.8".parse().unwrap()) && all.contains("fe80::1".parse().unwrap())
        );
    }

    #[test]
    fn bad_networks_are_told() {
        for bad in ["localhost", "127.0.0.1/8", "10.0.0.0/33", "[::1", "::1/129", "10.0.0.0/x"] {
            let error = networks(bad).unwrap_err();
            assert!(error.starts_with(&format!("\"{bad}\": ")), "{error}");
        }
    }
}
