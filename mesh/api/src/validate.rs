//! What a spec must look like before it is stored, and Docker's words when it does not.
//!
//! Texts and limits: swarm.md S12, §1.0 "Names", §1.13. What depends on other objects (a name or
//! a port that is taken) is `control`'s to say.

use prost::Message;

pub use self::cluster::{CLUSTER_NAME, address_pools, cluster_spec, node_description, node_spec};
use crate::{ContainerSpec, EndpointSpec, PortConfig, Protocol, ServiceSpec};

mod cluster;

/// Why a spec is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Names are DNS labels, since tasks find services by them.
    #[error("name must be valid as a DNS name component")]
    Name,
    /// A DNS label has at most 63 octets (RFC 1035, section 2.3.4).
    #[error("name must be 63 characters or fewer")]
    NameTooLong,
    /// There is no task to run.
    #[error("TaskSpec: missing container spec")]
    NoContainer,
    /// There is no image to run.
    #[error("ContainerSpec: image reference must be provided")]
    NoImage,
    /// The native executor runs root file systems only, yet.
    #[error("ContainerSpec: {image:?} is not an image that this release can run: use rootfs:/DIR")]
    Image {
        /// The reference as given.
        image: String,
    },
    /// An environment entry has no name.
    #[error("ContainerSpec: invalid environment variable {entry:?}: use NAME=value")]
    Env {
        /// The entry as given.
        entry: String,
    },
    /// Port 0, or above 65535.
    #[error("EndpointSpec: {which} port {port} is not in the range 1-65535")]
    Port {
        /// `target` or `published`.
        which: &'static str,
        /// The number as given.
        port: u32,
    },
    /// Two frontends of one service would be the same.
    #[error("EndpointSpec: duplicate published ports provided")]
    DuplicatePort,
    /// All of it is replicated, and every task carries its service's.
    #[error("{what} spec is {bytes} bytes long, the most is {most}")]
    TooLarge {
        /// `service`, `node`, `cluster`.
        what: &'static str,
        /// As encoded.
        bytes: usize,
        /// The most that is allowed.
        most: usize,
    },
    /// More replicas than a backend number can tell apart.
    #[error("Number of replicas must be at most {max}, not {replicas}")]
    TooManyReplicas {
        /// The number as given.
        replicas: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// There is one name that a cluster may have.
    #[error("swarm spec must be named \"default\"")]
    ClusterName,
    /// Nodes would renew their certificates all the time.
    #[error("minimum certificate expiry time is: 1h0m0s")]
    CertExpiry,
    /// Agents would do nothing else.
    #[error("dispatcher heartbeat period must be a positive duration")]
    Heartbeat,
    /// No node could keep up, and all would count as down.
    #[error("dispatcher heartbeat period must be at least 100ms")]
    HeartbeatTooShort,
    /// Managers would do nothing else.
    #[error("snapshot interval must be at least 1 entry")]
    SnapshotInterval,
    /// Certificates are not asked for in the clear.
    #[error("invalid external CA URL {url:?}: use https://HOST[:PORT]/PATH")]
    ExternalCa {
        /// As given.
        url: String,
    },
    /// The number means nothing to this release.
    #[error("invalid Availability: {availability:?}")]
    Availability {
        /// As given.
        availability: String,
    },
    /// The number means nothing to this release.
    #[error("invalid Role: {role:?}")]
    Role {
        /// As given.
        role: String,
    },
    /// What a node says of itself is replicated, too.
    #[error("node description is {bytes} bytes long, the most is {most}")]
    Description {
        /// As encoded.
        bytes: usize,
        /// The most that is allowed.
        most: usize,
    },
    /// A label has no name.
    #[error("labels must have a name")]
    Label,
    /// A subnet of that size cannot hold tasks, or is no subnet.
    #[error("subnet size is out of range: {size}")]
    SubnetSize {
        /// Prefix length.
        size: u32,
    },
    /// The pool is not an IPv4 CIDR.
    #[error("invalid base pool {pool}: use an IPv4 CIDR")]
    Pool {
        /// As given.
        pool: String,
    },
    /// No subnet of the size fits in the pool.
    #[error("invalid CIDR: {pool:?}. Subnet size is too small for pool: {size}")]
    PoolTooSmall {
        /// As given.
        pool: String,
        /// Prefix length of the subnets.
        size: u32,
    },
    /// Two pools have addresses in common.
    #[error("base pool {pool} overlaps with {other}")]
    PoolsOverlap {
        /// As given.
        pool: String,
        /// One before it.
        other: String,
    },
}

/// Backends of one cluster are numbered in 16 bits and the ingress network is a /24 by default; a
/// larger wish is a typing error that would only fill the store.
pub const MAX_REPLICAS: u64 = 65_535;

/// Bytes of a spec. A node may report some hundred tasks at once, and all must fit in one batch.
pub const MAX_SPEC_BYTES: usize = 64 << 10;

/// Checks all of a service spec that needs no other object.
///
/// # Errors
/// The first rule that the spec breaks.
pub fn service_spec(spec: &ServiceSpec) -> Result<(), Invalid> {
    name(&spec.name)?;
    let bytes = spec.encoded_len();
    if bytes > MAX_SPEC_BYTES {
        return Err(Invalid::TooLarge { what: "service", bytes, most: MAX_SPEC_BYTES });
    }
    let container = spec.task.as_ref().and_then(|task| task.container.as_ref());
    container_spec(container.ok_or(Invalid::NoContainer)?)?;
    if spec.replicas > MAX_REPLICAS {
        return Err(Invalid::TooManyReplicas { replicas: spec.replicas, max: MAX_REPLICAS });
    }
    spec.endpoint.as_ref().map_or(Ok(()), endpoint_spec)
}

/// Checks a service's or network's name: a DNS label.
fn name(name: &str) -> Result<(), Invalid> {
    if name.len() > 63 {
        return Err(Invalid::NameTooLong);
    }
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let ok = edge(name.chars().next()) && edge(name.chars().last()) && name.chars().all(inner);
    if ok { Ok(()) } else { Err(Invalid::Name) }
}

fn container_spec(container: &ContainerSpec) -> Result<(), Invalid> {
    if container.image.is_empty() {
        return Err(Invalid::NoImage);
    }
    if !container.image.strip_prefix("rootfs:").is_some_and(|dir| dir.starts_with('/')) {
        return Err(Invalid::Image { image: container.image.clone() });
    }
    match container.env.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        Some(entry) => Err(Invalid::Env { entry: entry.clone() }),
        None => Ok(()),
    }
}

fn endpoint_spec(endpoint: &EndpointSpec) -> Result<(), Invalid> {
    let mut seen: Vec<(Protocol, u32)> = Vec::new();
    for port in &endpoint.ports {
        port_range("target", port.target_port, 1)?;
        port_range("published", port.published_port, 0)?;
        let key = (port.protocol(), port.published_port);
        if port.published_port != 0 && seen.contains(&key) {
            return Err(Invalid::DuplicatePort);
        }
        seen.push(key);
    }
    Ok(())
}

fn port_range(which: &'static str, port: u32, least: u32) -> Result<(), Invalid> {
    if (least..=65_535).contains(&port) { Ok(()) } else { Err(Invalid::Port { which, port }) }
}

impl PortConfig {
    /// `8080/tcp`, by the published port.
    #[must_use]
    pub fn published(&self) -> String {
        format!("{}/{}", self.published_port, self.protocol().word())
    }
}

impl Protocol {
    /// `tcp` or `udp`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TaskSpec;

    fn spec(name: &str, image: &str, ports: &[(u32, u32)]) -> ServiceSpec {
        let container = ContainerSpec { image: image.into(), ..ContainerSpec::default() };
        let port = |&(published_port, target_port)| PortConfig {
            published_port,
            target_port,
            ..PortConfig::default()
        };
        ServiceSpec {
            name: name.into(),
            task: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
            replicas: 1,
            endpoint: Some(EndpointSpec { ports: ports.iter().map(port).collect() }),
            ..ServiceSpec::default()
        }
    }

    fn check(spec: &ServiceSpec, expected: Result<(), &str>) {
        let got = service_spec(spec).map_err(|invalid| invalid.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "{spec:?}");
    }

    #[test]
    fn a_plain_service_is_accepted() {
        check(&spec("web", "rootfs:/", &[(8080, 80), (0, 443), (0, 444)]), Ok(()));
    }

    #[test]
    fn a_name_is_a_dns_label() {
        for bad in ["", "-web", "web-", "we b", "wéb", "a.b"] {
            check(&spec(bad, "rootfs:/", &[]), Err("name must be valid as a DNS name component"));
        }
        let long = "a".repeat(64);
        check(&spec(&long, "rootfs:/", &[]), Err("name must be 63 characters or fewer"));
    }

    #[test]
    fn an_image_must_be_one_that_can_run() {
        check(&spec("web", "", &[]), Err("ContainerSpec: image reference must be provided"));
        check(
            &spec("web", "nginx", &[]),
            Err(
                "ContainerSpec: \"nginx\" is not an image that this release can run: use rootfs:/DIR",
            ),
        );
    }

    #[test]
    fn a_spec_is_not_larger_than_a_batch_can_bear() {
        let mut large = spec("web", "rootfs:/", &[]);
        large.labels.insert("note".into(), "x".repeat(MAX_SPEC_BYTES - 100));
        check(&large, Ok(()));
        large.labels.insert("note".into(), "x".repeat(MAX_SPEC_BYTES));
        let bytes = large.encoded_len();
        let text = format!("service spec is {bytes} bytes long, the most is 65536");
        check(&large, Err(&text));
    }

    #[test]
    fn ports_are_in_range_and_published_once() {
        check(
            &spec("web", "rootfs:/", &[(8080, 0)]),
            Err("EndpointSpec: target port 0 is not in the range 1-65535"),
        );
        check(
            &spec("web", "rootfs:/", &[(70_000, 80)]),
            Err("EndpointSpec: published port 70000 is not in the range 1-65535"),
        );
        check(
            &spec("web", "rootfs:/", &[(8080, 80), (8080, 81)]),
            Err("EndpointSpec: duplicate published ports provided"),
        );
    }
}
