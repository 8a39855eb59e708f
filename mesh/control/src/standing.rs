//! What each session's node must be told of its certificate and of whom to trust.

use shoal_api::{NodeRole, RootCa};

use crate::store::Store;

/// What one session's node must be told now. The roots' PEM is the manager's to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The session.
    pub session_id: String,
    /// Its node.
    pub node_id: String,
    /// What the node's certificate is to say.
    pub role: NodeRole,
    /// Under which it is to take part in Raft; 0 for a worker.
    pub raft_id: u64,
    /// Digest of the root that certificates are issued under now, in hex.
    pub issuer_digest: String,
    /// Digests of all roots to trust, in hex.
    pub trusted: Vec<String>,
}

/// What a session was told last: role, Raft id, issuer, roots.
pub(crate) type Told = (NodeRole, u64, String, Vec<String>);

/// What a node's session is to be told. `None` where there is no such node or no root.
pub(crate) fn of(store: &Store, node_id: &str) -> Option<Told> {
    let node = store.node(node_id)?;
    let root: &RootCa = store.cluster()?.root_ca.as_ref()?;
    let raft_id = node.manager.as_ref().map_or(0, |manager| manager.raft_id);
    let role = node.certified_role();
    Some((role, raft_id, root.issuer_digest().to_owned(), root.trusted_digests()))
}
