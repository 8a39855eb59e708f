//! What a cluster's and a node's spec must look like, and the pools that subnets are cut from.
//!
//! Texts: swarm.md §1.13 "init/join validation".

use ipnetwork::Ipv4Network;
use prost::Message;

use super::{Invalid, MAX_SPEC_BYTES};
use crate::duration::NODE_CERT_EXPIRY_MIN;
use crate::{
    CaSpec, ClusterSpec, ExternalCa, NodeAvailability, NodeDescription, NodeRole, NodeSpec,
    SUBNET_SIZE,
};

/// Docker knows one cluster, and this is its name.
pub const CLUSTER_NAME: &str = "default";

/// Longest prefix of a subnet that still holds some tasks beside its gateway; Docker's limit.
const LONGEST_PREFIX: u32 = 29;
/// Shortest: an address is found as an offset in its subnet, and no cluster has more tasks.
const SHORTEST_PREFIX: u32 = 8;

/// A node is down after three missed heartbeats: with less than this between them a moment's load on
/// the network or the leader's disk would take every node down.
const SHORTEST_HEARTBEAT_NS: u64 = 100_000_000;

/// Bytes of a node's description: some names, versions and numbers.
const MAX_DESCRIPTION_BYTES: usize = 16 << 10;

/// Checks all of a cluster's spec that needs no other object.
///
/// # Errors
/// The first rule that the spec breaks.
pub fn cluster_spec(spec: &ClusterSpec) -> Result<(), Invalid> {
    if spec.name != CLUSTER_NAME {
        return Err(Invalid::ClusterName);
    }
    size("cluster", spec.encoded_len())?;
    if spec.dispatcher_heartbeat_ns == Some(0) {
        return Err(Invalid::Heartbeat);
    }
    if spec.dispatcher_heartbeat_ns.is_some_and(|period| period < SHORTEST_HEARTBEAT_NS) {
        return Err(Invalid::HeartbeatTooShort);
    }
    if spec.raft.is_some_and(|raft| raft.snapshot_interval == Some(0)) {
        return Err(Invalid::SnapshotInterval);
    }
    spec.ca.as_ref().map_or(Ok(()), ca_spec)
}

fn ca_spec(ca: &CaSpec) -> Result<(), Invalid> {
    let least = u64::try_from(NODE_CERT_EXPIRY_MIN.as_nanos()).unwrap_or(u64::MAX);
    if ca.node_cert_expiry_ns.is_some_and(|expiry| expiry < least) {
        return Err(Invalid::CertExpiry);
    }
    let host = |external: &ExternalCa| {
        let rest = external.url.strip_prefix("https://");
        rest.is_some_and(|rest| rest.split(['/', ':']).next().is_some_and(|host| !host.is_empty()))
    };
    match ca.external_cas.iter().find(|external| !host(external)) {
        Some(external) => Err(Invalid::ExternalCa { url: external.url.clone() }),
        None => Ok(()),
    }
}

/// Checks all of a node's spec that needs no other object.
///
/// # Errors
/// The first rule that the spec breaks.
pub fn node_spec(spec: &NodeSpec) -> Result<(), Invalid> {
    size("node", spec.encoded_len())?;
    if NodeAvailability::try_from(spec.availability).is_err() {
        return Err(Invalid::Availability { availability: spec.availability.to_string() });
    }
    if NodeRole::try_from(spec.role).is_err() {
        return Err(Invalid::Role { role: spec.role.to_string() });
    }
    if spec.labels.keys().any(String::is_empty) { Err(Invalid::Label) } else { Ok(()) }
}

/// Checks what a node says of itself: one that says too much would fill a batch that can never be
/// committed.
///
/// # Errors
/// It is too long.
pub fn node_description(description: &NodeDescription) -> Result<(), Invalid> {
    let (bytes, most) = (description.encoded_len(), MAX_DESCRIPTION_BYTES);
    if bytes > most { Err(Invalid::Description { bytes, most }) } else { Ok(()) }
}

/// Checks the pools that networks' subnets are cut from.
///
/// * `subnet_size` - prefix length of the subnets; 0 means the default.
///
/// # Errors
/// The first rule that they break.
pub fn address_pools(pools: &[String], subnet_size: u32) -> Result<(), Invalid> {
    let size = if subnet_size == 0 { SUBNET_SIZE } else { subnet_size };
    if !(SHORTEST_PREFIX..=LONGEST_PREFIX).contains(&size) {
        return Err(Invalid::SubnetSize { size });
    }
    let mut known: Vec<Ipv4Network> = Vec::new();
    for pool in pools {
        let parsed = pool.parse::<Ipv4Network>().ok().filter(|_| pool.contains('/'));
        let parsed = parsed.ok_or_else(|| Invalid::Pool { pool: pool.clone() })?;
        if size < u32::from(parsed.prefix()) {
            return Err(Invalid::PoolTooSmall { pool: pool.clone(), size });
        }
        if let Some(other) = known.iter().find(|other| other.overlaps(parsed)) {
            return Err(Invalid::PoolsOverlap { pool: pool.clone(), other: other.to_string() });
        }
        known.push(parsed);
    }
    Ok(())
}

fn size(what: &'static str, bytes: usize) -> Result<(), Invalid> {
    if bytes > MAX_SPEC_BYTES {
        return Err(Invalid::TooLarge { what, bytes, most: MAX_SPEC_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(edit: impl FnOnce(&mut ClusterSpec), expected: Result<(), &str>) {
        let mut spec = ClusterSpec { name: CLUSTER_NAME.into(), ..ClusterSpec::default() };
        edit(&mut spec);
        let got = cluster_spec(&spec).map_err(|invalid| invalid.to_string());
        assert_eq!(got, expected.map_err(str::to_owned));
    }

    fn expiry(seconds: u64) -> Option<CaSpec> {
        let node_cert_expiry_ns = Some(seconds * 1_000_000_000);
        Some(CaSpec { node_cert_expiry_ns, ..CaSpec::default() })
    }

    fn external(url: &str) -> Option<CaSpec> {
        let external = ExternalCa { url: url.into(), ..ExternalCa::default() };
        Some(CaSpec { external_cas: vec![external], ..CaSpec::default() })
    }

    #[test]
    fn a_cluster_is_named_default() {
        check(|_| {}, Ok(()));
        check(|spec| spec.name = "prod".into(), Err("swarm spec must be named \"default\""));
    }

    #[test]
    fn a_certificate_lives_for_an_hour_at_least() {
        check(|spec| spec.ca = expiry(3_600), Ok(()));
        let text = "minimum certificate expiry time is: 1h0m0s";
        check(|spec| spec.ca = expiry(3_599), Err(text));
    }

    #[test]
    fn periods_are_not_zero() {
        let text = "dispatcher heartbeat period must be a positive duration";
        check(|spec| spec.dispatcher_heartbeat_ns = Some(0), Err(text));
        let text = "dispatcher heartbeat period must be at least 100ms";
        check(|spec| spec.dispatcher_heartbeat_ns = Some(99_999_999), Err(text));
        check(|spec| spec.dispatcher_heartbeat_ns = Some(100_000_000), Ok(()));
        let raft = crate::RaftSpec { snapshot_interval: Some(0), ..crate::RaftSpec::default() };
        check(|spec| spec.raft = Some(raft), Err("snapshot interval must be at least 1 entry"));
    }

    #[test]
    fn an_external_ca_is_asked_over_https() {
        check(|spec| spec.ca = external("https://ca.example:8888/sign"), Ok(()));
        for url in ["http://ca.example", "ca.example", "https://", "https:///sign", ""] {
            let text = format!("invalid external CA URL {url:?}: use https://HOST[:PORT]/PATH");
            check(|spec| spec.ca = external(url), Err(&text));
        }
    }

    #[test]
    fn a_spec_that_no_batch_could_bear_is_refused() {
        let large = |labels: &mut std::collections::BTreeMap<String, String>| {
            labels.insert("note".into(), "x".repeat(MAX_SPEC_BYTES));
        };
        let mut node = NodeSpec::default();
        large(&mut node.labels);
        assert!(matches!(node_spec(&node), Err(Invalid::TooLarge { what: "node", .. })));
        let mut spec = ClusterSpec { name: CLUSTER_NAME.into(), ..ClusterSpec::default() };
        large(&mut spec.labels);
        assert!(matches!(cluster_spec(&spec), Err(Invalid::TooLarge { what: "cluster", .. })));
    }

    #[test]
    fn a_node_is_available_in_a_way_that_is_known() {
        assert_eq!(node_spec(&NodeSpec::default()), Ok(()));
        let unknown = NodeSpec { availability: 9, ..NodeSpec::default() };
        let text = node_spec(&unknown).unwrap_err().to_string();
        assert_eq!(text, "invalid Availability: \"9\"");
        let unknown = NodeSpec { role: 9, ..NodeSpec::default() };
        assert_eq!(node_spec(&unknown).unwrap_err().to_string(), "invalid Role: \"9\"");
        let labels = [(String::new(), "x".to_owned())].into();
        let unnamed = NodeSpec { labels, ..NodeSpec::default() };
        assert_eq!(node_spec(&unnamed), Err(Invalid::Label));
    }

    fn check_pools(pools: &[&str], size: u32, expected: Result<(), &str>) {
        let pools: Vec<String> = pools.iter().map(|pool| (*pool).to_owned()).collect();
        let got = address_pools(&pools, size).map_err(|invalid| invalid.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "{pools:?} {size}");
    }

    #[test]
    fn pools_hold_the_subnets_that_are_cut_from_them() {
        check_pools(&[], 0, Ok(()));
        check_pools(&["10.0.0.0/8", "172.16.0.0/12"], 26, Ok(()));
        check_pools(&["10.7.0.0/26"], 26, Ok(()));
        check_pools(&[], 30, Err("subnet size is out of range: 30"));
        check_pools(&[], 7, Err("subnet size is out of range: 7"));
        let text = "invalid CIDR: \"10.7.0.0/26\". Subnet size is too small for pool: 24";
        check_pools(&["10.7.0.0/26"], 24, Err(text));
        for bad in ["10.0.0.0", "fd00::/8", "ten"] {
            check_pools(&[bad], 24, Err(&format!("invalid base pool {bad}: use an IPv4 CIDR")));
        }
        let text = "base pool 10.1.0.0/16 overlaps with 10.0.0.0/8";
        check_pools(&["10.0.0.0/8", "10.1.0.0/16"], 24, Err(text));
    }
}
