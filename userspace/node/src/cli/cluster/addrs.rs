//! Addresses that a node is told: where it listens, what it advertises, whom it joins.
//!
//! Only their form is checked here; whether this host has them is the daemon's to say.

use std::net::{IpAddr, Ipv6Addr};

use crate::config::{Advertise, IpOrInterface};

/// Managers listen on 2377 unless told otherwise (swarm.md §1.0).
const MANAGER_PORT: u16 = 2377;

/// Checks the form of `IP|INTERFACE[:PORT]` and keeps it as typed.
///
/// # Errors
/// What was expected.
pub fn advertise(text: &str) -> Result<String, String> {
    text.parse::<Advertise>().map(|_| text.to_owned())
}

/// Checks the form of `IP|INTERFACE` and keeps it as typed.
///
/// # Errors
/// What was expected.
pub fn data_path(text: &str) -> Result<String, String> {
    text.parse::<IpOrInterface>().map(|_| text.to_owned())
}

/// Reads `IP|INTERFACE[:PORT]` and puts the port that is missing.
///
/// # Errors
/// What was expected.
pub fn listen(text: &str) -> Result<String, String> {
    let Advertise { host, port } = text.parse()?;
    let port = port.unwrap_or(MANAGER_PORT);
    Ok(match host {
        IpOrInterface::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        IpOrInterface::Ip(ip) => format!("{ip}:{port}"),
        IpOrInterface::Interface(name) => format!("{name}:{port}"),
    })
}

/// Reads `HOST[:PORT]` of a manager and puts the port that is missing.
///
/// # Errors
/// What was expected.
pub fn manager(addr: &str) -> Result<String, String> {
    let invalid = || format!("invalid manager address {addr:?}: use HOST:PORT");
    if addr.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{addr}]:{MANAGER_PORT}"));
    }
    match addr.rsplit_once(':') {
        None if !addr.is_empty() => Ok(format!("{addr}:{MANAGER_PORT}")),
        Some((host, port)) if !host.is_empty() => match port.parse::<u16>() {
            Ok(port) if port != 0 => Ok(addr.to_owned()),
            _ => Err(invalid()),
        },
        _ => Err(invalid()),
    }
}

/// Reads a pool that subnets are cut from: a CIDR, without its host bits.
///
/// # Errors
/// What was expected.
pub fn pool(text: &str) -> Result<String, String> {
    let invalid = || "use a subnet such as 10.20.0.0/16".to_owned();
    let (ip, prefix) = text.trim().split_once('/').ok_or_else(invalid)?;
    let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
    let network = ipnetwork::IpNetwork::new(ip.parse().map_err(|_| invalid())?, prefix);
    let network = network.map_err(|_| invalid())?;
    Ok(format!("{}/{prefix}", network.network()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_a_host_and_maybe_a_port() {
        let check = |addr: &str, expected: Option<&str>| {
            assert_eq!(manager(addr).ok().as_deref(), expected, "{addr}");
        };
        check("10.0.0.1", Some("10.0.0.1:2377"));
        check("10.0.0.1:99", Some("10.0.0.1:99"));
        check("n1.example", Some("n1.example:2377"));
        check("fd88::1", Some("[fd88::1]:2377"));
        check("[fd88::1]:99", Some("[fd88::1]:99"));
        for bad in ["", ":2377", "n1:", "n1:x", "n1:0", "n1:70000"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_listening_address_gets_the_managers_port() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(listen(text).ok().as_deref(), expected, "{text}");
        };
        check("0.0.0.0", Some("0.0.0.0:2377"));
        check("10.0.0.1:99", Some("10.0.0.1:99"));
        check("fd88::1", Some("[fd88::1]:2377"));
        check("[::]:99", Some("[::]:99"));
        check("eth0", Some("eth0:2377"));
        check("", None);
        check("10.0.0.1:x", None);
    }

    #[test]
    fn a_pool_is_a_subnet_without_host_bits() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(pool(text).ok().as_deref(), expected, "{text}");
        };
        check("10.20.0.0/16", Some("10.20.0.0/16"));
        check("10.20.3.4/16", Some("10.20.0.0/16"));
        check("fd00::1/48", Some("fd00::/48"));
        for bad in ["", "10.20.0.0", "10.20.0.0/33", "10.20.0.0/x", "x/8"] {
            check(bad, None);
        }
    }
}
