//! Small readings of the cluster's own object: what its spec leaves unset, and which root counts.

use std::time::Duration;

use crate::duration::{HEARTBEAT_PERIOD, NODE_CERT_EXPIRY};
use crate::{Cluster, ClusterSpec, NodeCertificate, RootCa};

/// Ended tasks that each slot keeps; Docker's default (swarm.md CL2).
pub const TASK_HISTORY: usize = 5;
/// Where networks' subnets are cut from when the founder names no pool (swarm.md W8).
pub const ADDRESS_POOL: &str = "10.0.0.0/8";
/// Prefix length of those subnets.
pub const SUBNET_SIZE: u32 = 24;

impl ClusterSpec {
    /// How often an agent must send a heartbeat.
    #[must_use]
    pub fn heartbeat_period(&self) -> Duration {
        self.dispatcher_heartbeat_ns.map_or(HEARTBEAT_PERIOD, Duration::from_nanos)
    }

    /// Life of a node's certificate.
    #[must_use]
    pub fn node_cert_expiry(&self) -> Duration {
        let expiry = self.ca.as_ref().and_then(|ca| ca.node_cert_expiry_ns);
        expiry.map_or(NODE_CERT_EXPIRY, Duration::from_nanos)
    }

    /// Ended tasks that each slot keeps; `None` keeps all.
    #[must_use]
    pub fn task_history(&self) -> Option<usize> {
        match self.task_history_limit {
            None => Some(TASK_HISTORY),
            Some(limit) if limit < 0 => None,
            Some(limit) => Some(usize::try_from(limit).unwrap_or(usize::MAX)),
        }
    }

    /// `CaSpec.force_rotate`; 0 where there is no such spec.
    #[must_use]
    pub fn force_rotate(&self) -> u64 {
        self.ca.as_ref().map_or(0, |ca| ca.force_rotate)
    }
}

impl Cluster {
    /// How often an agent must send a heartbeat.
    #[must_use]
    pub fn heartbeat_period(&self) -> Duration {
        self.spec.as_ref().map_or(HEARTBEAT_PERIOD, ClusterSpec::heartbeat_period)
    }

    /// Life of a node's certificate.
    #[must_use]
    pub fn node_cert_expiry(&self) -> Duration {
        self.spec.as_ref().map_or(NODE_CERT_EXPIRY, ClusterSpec::node_cert_expiry)
    }

    /// Digest of the root that certificates are issued under now, in hex.
    #[must_use]
    pub fn issuer_digest(&self) -> &str {
        self.root_ca.as_ref().map_or("", RootCa::issuer_digest)
    }

    /// Whether the node of that id was removed, so that it is refused wherever it knocks.
    #[must_use]
    pub fn has_removed(&self, node_id: &str) -> bool {
        self.removed_nodes.contains_key(node_id)
    }
}

impl RootCa {
    /// Digest of the root that certificates are issued under now: the next one during a roll-over.
    #[must_use]
    pub fn issuer_digest(&self) -> &str {
        self.rotation.as_ref().map_or(&self.digest, |rotation| &rotation.digest)
    }

    /// Digests of all roots to trust now.
    #[must_use]
    pub fn trusted_digests(&self) -> Vec<String> {
        let next = self.rotation.as_ref().map(|rotation| rotation.digest.clone());
        std::iter::once(self.digest.clone()).chain(next).collect()
    }
}

impl NodeCertificate {
    /// Whether the node said that it uses a certificate under the root of that digest. That it was
    /// given one is not enough: the answer that carried it may have been lost.
    #[must_use]
    pub fn is_held_under(&self, digest: &str) -> bool {
        self.held_digest == digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RootRotation;

    #[test]
    fn what_a_spec_leaves_unset_has_dockers_value() {
        let spec = ClusterSpec::default();
        assert_eq!(spec.node_cert_expiry(), Duration::from_secs(90 * 24 * 60 * 60));
        assert_eq!(spec.heartbeat_period(), Duration::from_secs(1));
        assert_eq!(spec.task_history(), Some(5));
        let limit = |limit| {
            let spec = ClusterSpec { task_history_limit: Some(limit), ..ClusterSpec::default() };
            spec.task_history()
        };
        assert_eq!((limit(0), limit(7), limit(-1)), (Some(0), Some(7), None));
    }

    #[test]
    fn during_a_roll_over_the_next_root_issues_and_both_are_trusted() {
        let mut root = RootCa { digest: "old".into(), ..RootCa::default() };
        assert_eq!((root.issuer_digest(), root.trusted_digests()), ("old", vec!["old".into()]));
        root.rotation = Some(RootRotation { digest: "new".into(), ..RootRotation::default() });
        assert_eq!(root.issuer_digest(), "new");
        assert_eq!(root.trusted_digests(), ["old", "new"]);
    }
}
