//! What a certificate says about a node, and the names of the roles.

use shoal_api::NodeRole;

/// Organizational unit and DNS name of managers.
pub const MANAGER: &str = "swarm-manager";

/// Organizational unit and DNS name of workers.
pub const WORKER: &str = "swarm-worker";

/// A node as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The node's id: the common name.
    pub node_id: String,
    /// What the node may do: the organizational unit.
    pub role: NodeRole,
    /// The cluster that the node belongs to: the organization.
    pub cluster_id: String,
}

/// A role as certificates write it.
#[must_use]
pub fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Manager => MANAGER,
        NodeRole::Worker => WORKER,
    }
}

/// The role that a certificate names.
pub(crate) fn role_of(name: &str) -> Option<NodeRole> {
    match name {
        MANAGER => Some(NodeRole::Manager),
        WORKER => Some(NodeRole::Worker),
        _ => None,
    }
}
