//! Addresses as people give them: an IP address, or the interface that has it.

use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;

/// An address, or the interface whose first address it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum IpOrInterface {
    /// As given.
    Ip(IpAddr),
    /// To be looked up.
    Interface(String),
}

/// What to advertise; without a port it is the listening one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Advertise {
    /// Address or interface.
    pub host: IpOrInterface,
    /// `None`: the listening port.
    pub port: Option<u16>,
}

impl FromStr for IpOrInterface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self::Ip(ip));
        }
        // The kernel's IFNAMSIZ is 16 with the closing zero.
        let name = |c: char| !c.is_whitespace() && c != '/' && c != ':';
        if !text.is_empty() && text.len() <= 15 && text.chars().all(name) {
            return Ok(Self::Interface(text.to_owned()));
        }
        Err("expected an IP address or an interface name".to_owned())
    }
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(host) = text.parse() {
            return Ok(Self { host, port: None });
        }
        let expected = || "expected an IP address or an interface name, and maybe :PORT".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(expected)?;
        Ok(Self { host: host.parse().map_err(|_| expected())?, port: Some(port) })
    }
}

impl TryFrom<String> for IpOrInterface {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for Advertise {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_an_interface_and_carry_a_port() {
        let check = |text: &str, host: IpOrInterface, port: Option<u16>| {
            assert_eq!(text.parse(), Ok(Advertise { host, port }), "{text}");
        };
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "fd88::1".parse().unwrap();
        check("10.0.0.1", IpOrInterface::Ip(v4), None);
        check("10.0.0.1:2377", IpOrInterface::Ip(v4), Some(2377));
        check("fd88::1", IpOrInterface::Ip(v6), None);
        check("[fd88::1]:99", IpOrInterface::Ip(v6), Some(99));
        check("eth0", IpOrInterface::Interface("eth0".into()), None);
        check("eth0:99", IpOrInterface::Interface("eth0".into()), Some(99));
        assert!("10.0.0.1:0".parse::<Advertise>().is_err());
        assert!("a name with spaces".parse::<Advertise>().is_err());
    }
}
