//! inet - names of inet services: `port`, `host:port`, `[address]:port` (E08 to E11)

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::service::Endpoint;

/// Who knows the names of hosts and ports. The master asks before a table takes effect, never while
/// it serves.
pub trait Resolver {
    /// The addresses of a host or of a written address, of the protocols in use, without duplicates;
    /// empty if there is none.
    fn host(&self, name: &str) -> Vec<IpAddr>;
    /// The TCP port of a service name.
    fn port(&self, name: &str) -> Option<u16>;
}

/// A message and its cure.
type Problem = (String, &'static str);

const FORMS: &str = "write port, host:port, [address]:port, or [ipv6:address]:port";

/// The canonical name and the addresses of a service.
pub(super) fn read(
    name: &str,
    interfaces: &[IpAddr],
    resolver: &dyn Resolver,
) -> Result<(String, Vec<Endpoint>), Problem> {
    let (host, service) = split(name)?;
    let port = port(service, resolver)?;
    if host.is_empty() {
        if interfaces.is_empty() {
            let message = "no address to listen on".to_owned();
            return Err((message, "see inet_interfaces and inet_protocols in main.cf"));
        }
        return Ok((port.to_string(), endpoints(interfaces, port)));
    }
    let addresses = resolver.host(host);
    if addresses.is_empty() {
        let message = format!("bad hostname or network address: {name}");
        return Err((message, "a host with an address of the protocols in inet_protocols"));
    }
    Ok((format!("[{host}]:{port}"), endpoints(&addresses, port)))
}

fn endpoints(addresses: &[IpAddr], port: u16) -> Vec<Endpoint> {
    addresses.iter().map(|a| Endpoint::Inet(SocketAddr::new(*a, port))).collect()
}

fn split(name: &str) -> Result<(&str, &str), Problem> {
    let Some(inside) = name.strip_prefix('[') else {
        let (host, service) = name.rsplit_once(':').unwrap_or(("", name));
        if service.is_empty() {
            return Err(("missing service information".to_owned(), FORMS));
        }
        if bad_host(host) {
            return Err(("valid hostname or network address required".to_owned(), FORMS));
        }
        return Ok((host, service));
    };
    let Some((host, rest)) = inside.split_once(']') else {
        return Err(("missing \"]\"".to_owned(), FORMS));
    };
    let Some(service) = rest.strip_prefix(':') else {
        let message =
            if rest.is_empty() { "missing service information" } else { "garbage after \"]\"" };
        return Err((message.to_owned(), FORMS));
    };
    if service.is_empty() {
        return Err(("missing service information".to_owned(), FORMS));
    }
    if host.is_empty() {
        return Err(("valid hostname or network address required".to_owned(), FORMS));
    }
    let v6 = host.get(..5).filter(|p| p.eq_ignore_ascii_case("ipv6:")).map(|_| &host[5..]);
    match v6 {
        Some(address) if address.parse::<Ipv6Addr>().is_err() => {
            Err(("malformed IPv6 address".to_owned(), FORMS))
        }
        Some(address) => Ok((address, service)),
        None if bad_host(host) => {
            Err(("valid hostname or network address required".to_owned(), FORMS))
        }
        None => Ok((host, service)),
    }
}

/// Neither a name nor an address. It may be empty.
fn bad_host(host: &str) -> bool {
    let odd = |c: char| !(c.is_ascii_alphanumeric() || "-._:".contains(c));
    host.contains(odd) || host.contains(':') && host.parse::<Ipv6Addr>().is_err()
}

fn port(service: &str, resolver: &dyn Resolver) -> Result<u16, Problem> {
    const HELP: &str = "a number from 1 to 65535, or a name in /etc/services or known_tcp_ports";
    if !service.starts_with(|c: char| c.is_ascii_digit()) {
        return resolver.port(service).ok_or_else(|| (format!("unknown service: {service}"), HELP));
    }
    if service.contains(|c: char| !c.is_ascii_digit()) {
        return Err((format!("garbage after numerical service: {service}"), HELP));
    }
    match service.parse() {
        Ok(0) | Err(_) => Err((format!("bad port number: {service}"), HELP)),
        Ok(port) => Ok(port),
    }
}
