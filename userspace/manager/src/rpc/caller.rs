//! Who calls, and whether it may: the one place that reads certificates.
//!
//! Every method of every service starts with one of these checks; `tests/cluster/callers.rs` walks
//! all that the protos name and fails for one that does not. What they judge by is the certificate
//! of the connection, or that the call came over the machine's own socket, and the store.
//!
//! | Class | Who | What |
//! | --- | --- | --- |
//! | [`stranger`] | anybody | `Ca.Join` |
//! | [`member`] | a node of the cluster | `Ca.Renew`, `Dispatcher` |
//! | [`colleague`] | a manager | `Leader` |
//! | [`raft_peer`] | a manager, in its own name | `Raft`, `Leader.Announce` |
//! | [`manager`] | a manager, or the local socket of this one | `Control` |
//!
//! A removed node is refused in every class from the moment that this manager's store knows it, and
//! a connection in every class from the moment that its certificate would not pass a handshake. A
//! store that lags refuses nobody for what it does not know yet: the leader, whose store is
//! complete, looks again at who writes ([`may_write`]), and a read looks again when it has caught up
//! ([`still_manager`]).

use shoal_api::{Caller, Node, NodeRole, write};
use shoal_control::Store;
use shoal_identity::Identity;
use shoal_transport::Peer;
use tonic::{Request, Status};

use super::{Shared, status, to_leader};

/// The call came over the machine's own socket: nothing on the network can say so.
#[derive(Clone)]
struct OverLocalSocket(Caller);

/// Marks every request on the local socket as this node's own.
pub fn local(node_id: String) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |mut request| {
        let caller = Caller { node_id: node_id.clone(), role: NodeRole::Manager.into() };
        request.extensions_mut().insert(OverLocalSocket(caller));
        Ok(request)
    }
}

/// Anybody may call this, with or without a certificate.
pub fn stranger<T>(_request: &Request<T>) {}

/// A node of this cluster.
///
/// # Errors
/// It has no certificate, was removed, or is not known.
pub fn member<T>(shared: &Shared, request: &Request<T>) -> Result<Caller, Status> {
    let identity = identity(shared, request)?;
    let store = shared.view.store();
    allowed(&store, &identity)?;
    // Only a leader's store is surely as new as the certificate; it is asked in the end.
    if shared.desk.is_open() && store.node(&identity.node_id).is_none() {
        return Err(status::not_a_member(&identity.node_id));
    }
    Ok(caller(identity))
}

/// Another manager that asks this one as the leader, and is told so where it is not.
///
/// # Errors
/// It has no manager's certificate, was removed, or is no manager any more.
pub fn colleague<T>(shared: &Shared, request: &Request<T>) -> Result<Caller, Status> {
    let identity = manager_identity(shared, request)?;
    if shared.desk.is_open() && !is_manager(&shared.view.store(), &identity.node_id) {
        return Err(status::not_a_manager(&identity.node_id));
    }
    Ok(caller(identity))
}

/// A manager, or this machine's own socket.
///
/// # Errors
/// It has no manager's certificate, was removed, or is no manager any more; or this manager cannot
/// find out.
pub async fn manager<T: Sync>(shared: &Shared, request: &Request<T>) -> Result<Caller, Status> {
    if let Some(OverLocalSocket(caller)) = request.extensions().get() {
        return Ok(caller.clone());
    }
    let identity = manager_identity(shared, request)?;
    if !is_manager(&shared.view.store(), &identity.node_id) {
        to_leader::catch_up(shared).await?;
        if !is_manager(&shared.view.store(), &identity.node_id) {
            return Err(status::not_a_manager(&identity.node_id));
        }
    }
    Ok(caller(identity))
}

/// A manager that is about to speak for a Raft member.
pub struct RaftPeer(Identity);

/// A manager that takes part in Raft; what it says counts only under its own Raft id, see
/// [`RaftPeer::speaks_for`].
///
/// # Errors
/// It has no manager's certificate, or was removed.
pub fn raft_peer<T>(shared: &Shared, request: &Request<T>) -> Result<RaftPeer, Status> {
    manager_identity(shared, request).map(RaftPeer)
}

impl RaftPeer {
    /// The peer's node.
    pub fn node_id(&self) -> &str {
        &self.0.node_id
    }

    /// Whether the peer's node is the member with this Raft id, as far as this manager can know. An
    /// id that was not given yet, here, is news of the log that this manager does not have.
    ///
    /// # Errors
    /// The member was removed, or is another node.
    pub fn speaks_for(&self, shared: &Shared, raft_id: u64) -> Result<(), Status> {
        match self.claim(&shared.view.store(), raft_id)? {
            Claim::Holds => Ok(()),
            // Who leads, or hears a leader, does not lack that much. It is a manager that kept its
            // certificate and makes up an id, or one of a time that a restored cluster does not
            // know: its term would end the leader's, and its log would take the place of ours.
            Claim::News if shared.has_leader_beside(raft_id) => {
                Err(status::unknown_raft_id(raft_id))
            }
            Claim::News => Ok(()),
        }
    }

    fn claim(&self, store: &Store, raft_id: u64) -> Result<Claim, Status> {
        // A newcomer that knows nothing yet takes everything from whoever leads.
        let Some(given) = store.cluster().and_then(|cluster| cluster.last.as_ref()) else {
            return Ok(Claim::Holds);
        };
        match holder(store, raft_id) {
            Some(node) if node.id == self.0.node_id => Ok(Claim::Holds),
            Some(_) => Err(status::another_raft_id(&self.0.node_id, raft_id)),
            None if raft_id > given.raft_id => Ok(Claim::News),
            None => Err(status::removed_raft_id(raft_id)),
        }
    }
}

/// What a store knows of a peer's Raft id.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    /// It is the peer's, or there is nothing to judge by.
    Holds,
    /// It was not given yet.
    News,
}

/// Looks at the author of a write again, where the store is complete: at the leader. The manager
/// that took the call may have lagged.
///
/// # Errors
/// The author is no manager, or asks for a certificate of another node.
pub fn may_write(store: &Store, caller: &Caller, kind: &write::Write) -> Result<(), Status> {
    if store.cluster().is_none() {
        // There is nothing yet, and control says so.
        return Ok(());
    }
    match kind {
        // Its token speaks for it.
        write::Write::Join(_) => Ok(()),
        write::Write::Renew(renew) if renew.node_id == caller.node_id => Ok(()),
        write::Write::Renew(renew) => Err(status::another_node(&caller.node_id, &renew.node_id)),
        _ if was_removed(store, &caller.node_id) => Err(status::removed(&caller.node_id)),
        _ if !is_manager(store, &caller.node_id) => Err(status::not_a_manager(&caller.node_id)),
        _ => Ok(()),
    }
}

/// Whether the connection of a long stream is still worth something; the machine's own socket always
/// is.
pub fn connection<T>(
    shared: &Shared,
    request: &Request<T>,
) -> impl Fn() -> Result<(), Status> + Send + 'static + use<T> {
    let (peer, credentials) =
        (request.extensions().get::<Peer>().cloned(), shared.credentials.clone());
    move || match &peer {
        Some(peer) => peer.still_passes(&credentials).map_err(|reason| status::stale(&reason)),
        None => Ok(()),
    }
}

/// The caller of a watch, another long stream, or a read that had to wait may still have it.
///
/// # Errors
/// It was removed, or is no manager any more.
pub fn still_manager(store: &Store, caller: &Caller) -> Result<(), Status> {
    if was_removed(store, &caller.node_id) {
        return Err(status::removed(&caller.node_id));
    }
    let demoted = store.node(&caller.node_id).is_some_and(|node| node.manager.is_none());
    if demoted { Err(status::not_a_manager(&caller.node_id)) } else { Ok(()) }
}

fn caller(identity: Identity) -> Caller {
    Caller { node_id: identity.node_id, role: identity.role.into() }
}

/// The certificate's words; the handshake has checked that a root of ours stands behind them.
fn identity<T>(shared: &Shared, request: &Request<T>) -> Result<Identity, Status> {
    let peer = request.extensions().get::<Peer>().ok_or_else(status::no_certificate)?;
    let identity = peer.identity.clone().ok_or_else(status::no_certificate)?;
    peer.still_passes(&shared.credentials).map_err(|reason| status::stale(&reason))?;
    let own = shared.credentials.identity().cluster_id;
    if identity.cluster_id != own {
        return Err(status::another_cluster(&identity.cluster_id, &own));
    }
    Ok(identity)
}

fn manager_identity<T>(shared: &Shared, request: &Request<T>) -> Result<Identity, Status> {
    let identity = identity(shared, request)?;
    allowed(&shared.view.store(), &identity)?;
    if identity.role != NodeRole::Manager {
        return Err(status::not_a_manager(&identity.node_id));
    }
    Ok(identity)
}

fn allowed(store: &Store, identity: &Identity) -> Result<(), Status> {
    if was_removed(store, &identity.node_id) {
        return Err(status::removed(&identity.node_id));
    }
    Ok(())
}

fn was_removed(store: &Store, node_id: &str) -> bool {
    store.cluster().is_some_and(|cluster| cluster.removed_nodes.contains_key(node_id))
}

fn is_manager(store: &Store, node_id: &str) -> bool {
    store.node(node_id).is_some_and(|node| node.manager.is_some())
}

fn holder(store: &Store, raft_id: u64) -> Option<&Node> {
    let holds = |node: &&std::sync::Arc<Node>| {
        node.manager.as_ref().is_some_and(|manager| manager.raft_id == raft_id)
    };
    store.nodes().find(holds).map(|node| &**node)
}

#[cfg(test)]
mod tests {
    use shoal_api::{Batch, Cluster, Cursors, ManagerStatus};
    use tonic::Code;

    use super::*;

    fn store() -> Store {
        let last = Some(Cursors { raft_id: 5, ..Cursors::default() });
        let removed_nodes = [("gone".to_owned(), 9)].into();
        let cluster = Cluster { id: "c".into(), last, removed_nodes, ..Cluster::default() };
        let manager = |raft_id| Some(ManagerStatus { raft_id, ..ManagerStatus::default() });
        let node = |id: &str, manager| Node { id: id.into(), manager, ..Node::default() };
        let nodes = [node("a", manager(1)), node("b", manager(5)), node("w", None)];
        let changes = nodes.into_iter().map(Node::put).chain([cluster.put()]).collect();
        let mut store = Store::default();
        store.apply(1, &Batch { changes, now_ns: 1 }).unwrap();
        store
    }

    fn peer(node_id: &str) -> RaftPeer {
        let (node_id, cluster_id) = (node_id.into(), "c".into());
        RaftPeer(Identity { node_id, cluster_id, role: NodeRole::Manager })
    }

    #[test]
    fn a_raft_id_speaks_only_for_the_node_that_holds_it() {
        let store = store();
        assert_eq!(peer("a").claim(&store, 1).unwrap(), Claim::Holds);
        let stolen = peer("b").claim(&store, 1).unwrap_err();
        assert_eq!(stolen.code(), Code::PermissionDenied, "{stolen}");
        let worker = peer("w").claim(&store, 5).unwrap_err();
        assert_eq!(worker.code(), Code::PermissionDenied, "{worker}");
    }

    #[test]
    fn a_removed_raft_id_is_refused_and_one_that_is_news_is_known_as_such() {
        let store = store();
        let removed = peer("a").claim(&store, 3).unwrap_err();
        assert_eq!(removed.code(), Code::PermissionDenied, "{removed}");
        assert_eq!(peer("new").claim(&store, 6).unwrap(), Claim::News);
        assert_eq!(peer("anybody").claim(&Store::default(), 1).unwrap(), Claim::Holds);
    }

    #[test]
    fn a_stream_ends_for_one_that_was_removed_or_demoted_and_for_nobody_else() {
        let store = store();
        let is = |id: &str| {
            let caller = Caller { node_id: id.into(), role: NodeRole::Manager.into() };
            still_manager(&store, &caller).map_err(|status| status.code())
        };
        assert_eq!(is("a"), Ok(()));
        assert_eq!(is("news"), Ok(()), "this store may lag");
        assert_eq!(is("w"), Err(Code::PermissionDenied));
        assert_eq!(is("gone"), Err(Code::PermissionDenied));
    }
}
