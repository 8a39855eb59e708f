//! `-p`: what a service publishes.
//!
//! Short form `[PUBLISHED:]TARGET[/PROTOCOL]`, where both may be ranges of equal length, or long
//! form `published=8080,target=80,protocol=tcp,mode=ingress` (swarm.md S12).

use std::ops::RangeInclusive;

use shoal_api::{PortConfig, Protocol};

/// The ports of one `-p`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ports(pub Vec<PortConfig>);

/// Reads one `-p`.
///
/// # Errors
/// One sentence that says which part is wrong.
pub fn parse(text: &str) -> Result<Ports, String> {
    if text.contains('=') {
        long(text).map(|port| Ports(vec![port]))
    } else {
        short(text).map(Ports)
    }
}

fn long(text: &str) -> Result<PortConfig, String> {
    let (mut target, mut published, mut protocol_) = (None, None, Protocol::Tcp);
    for field in text.split(',') {
        let Some((key, value)) = field.split_once('=') else {
            return Err(format!("invalid field '{field}': use KEY=VALUE"));
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "target" => target = Some(port("target", value)?),
            // Docker takes 0 for "choose one" here.
            "published" if value == "0" => published = Some(0),
            "published" => published = Some(port("published", value)?),
            "protocol" => protocol_ = protocol(value)?,
            "mode" if value == "ingress" => {}
            "mode" if value == "host" => {
                return Err("mode=host is not there yet: use mode=ingress".to_owned());
            }
            "mode" => return Err(format!("invalid publish mode value '{value}': use ingress")),
            _ => {
                return Err(format!(
                    "invalid field key '{key}': use target, published, protocol or mode"
                ));
            }
        }
    }
    let target = target.ok_or_else(|| "missing mandatory field 'target'".to_owned())?;
    Ok(port_config(published.unwrap_or(0), target, protocol_))
}

fn short(text: &str) -> Result<Vec<PortConfig>, String> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, word)) => (ports, protocol(word)?),
        None => (text, Protocol::Tcp),
    };
    let (published, target) = match ports.rsplit_once(':') {
        None => (None, ports),
        Some((published, _)) if published.contains(':') || published.contains('.') => {
            return Err(
                "HostIP is not supported by a service: a service answers on every node".into()
            );
        }
        Some((published, target)) => (Some(published), target),
    };
    let targets = range("target", target)?;
    let Some(published) = published.filter(|published| !published.is_empty()) else {
        return Ok(targets.map(|target| port_config(0, target, protocol)).collect());
    };
    let published = range("published", published)?;
    if published.len() != targets.len() {
        return Err(format!(
            "the ranges {}-{} and {}-{} are not equally long",
            published.start(),
            published.end(),
            targets.start(),
            targets.end()
        ));
    }
    let pairs = published.zip(targets);
    Ok(pairs.map(|(published, target)| port_config(published, target, protocol)).collect())
}

fn range(which: &str, text: &str) -> Result<RangeInclusive<u16>, String> {
    let Some((first, last)) = text.split_once('-') else {
        let port = port(which, text)?;
        return Ok(port..=port);
    };
    let (first, last) = (port(which, first)?, port(which, last)?);
    if first > last {
        return Err(format!("invalid {which} port range '{text}': it ends before it starts"));
    }
    Ok(first..=last)
}

fn port(which: &str, text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|&port| port != 0);
    port.ok_or_else(|| format!("invalid {which} port '{text}': use a number from 1 to 65535"))
}

fn protocol(word: &str) -> Result<Protocol, String> {
    match word.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("invalid protocol '{word}': use tcp or udp")),
    }
}

fn port_config(published: u16, target: u16, protocol: Protocol) -> PortConfig {
    PortConfig {
        protocol: protocol.into(),
        target_port: target.into(),
        published_port: published.into(),
    }
}

/// `*:8080->80/tcp, *:9000->90/udp`, as `service ls` shows it.
pub fn show(ports: &[PortConfig]) -> String {
    let mut ports: Vec<_> =
        ports.iter().map(|p| (p.protocol().word(), p.published_port, p.target_port)).collect();
    ports.sort_unstable();
    // Neighbouring ports of both sides are one range.
    let mut ranges: Vec<(&str, [u32; 2], [u32; 2])> = Vec::new();
    for (protocol, published, target) in ports {
        match ranges.last_mut() {
            Some((last, [_, to], [_, into]))
                if *last == protocol && *to + 1 == published && *into + 1 == target =>
            {
                (*to, *into) = (published, target);
            }
            _ => ranges.push((protocol, [published; 2], [target; 2])),
        }
    }
    let side = |[first, last]: [u32; 2]| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let show = |&(protocol, published, target): &(&str, [u32; 2], [u32; 2])| {
        format!("*:{}->{}/{protocol}", side(published), side(target))
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let ports = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(show(&ports.0), expected, "{text}");
    }

    fn refused(text: &str, expected: &str) {
        assert_eq!(parse(text).map(|ports| ports.0), Err(expected.to_owned()), "{text}");
    }

    #[test]
    fn the_short_form_is_published_then_target_then_protocol() {
        check("8080:80", "*:8080->80/tcp");
        check("8080:80/udp", "*:8080->80/udp");
        check("80", "*:0->80/tcp");
        check(":80", "*:0->80/tcp");
        check("8080-8082:80-82/UDP", "*:8080-8082->80-82/udp");
    }

    #[test]
    fn the_long_form_takes_its_fields_in_any_order() {
        check("published=8080,target=80,protocol=tcp", "*:8080->80/tcp");
        check("protocol=udp,target=80,mode=ingress", "*:0->80/udp");
        check("target=80,published=0", "*:0->80/tcp");
    }

    #[test]
    fn a_malformed_port_gives_one_sentence() {
        refused("", "invalid target port '': use a number from 1 to 65535");
        refused("8080:x", "invalid target port 'x': use a number from 1 to 65535");
        refused("70000:80", "invalid published port '70000': use a number from 1 to 65535");
        refused("8080:0", "invalid target port '0': use a number from 1 to 65535");
        refused("80/icmp", "invalid protocol 'icmp': use tcp or udp");
        refused("8080-8081:80", "the ranges 8080-8081 and 80-80 are not equally long");
        refused("82-80", "invalid target port range '82-80': it ends before it starts");
        refused(
            "127.0.0.1:8080:80",
            "HostIP is not supported by a service: a service answers on every node",
        );
        refused("published=8080", "missing mandatory field 'target'");
        refused(
            "target=80,port=1",
            "invalid field key 'port': use target, published, protocol or mode",
        );
        refused("target=80,mode=host", "mode=host is not there yet: use mode=ingress");
        refused("target=80,tcp", "invalid field 'tcp': use KEY=VALUE");
    }
}
