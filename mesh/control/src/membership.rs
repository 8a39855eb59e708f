//! Who is a member and as what: joins, roles, removals, and managers that leave or move.
//!
//! The role in a node's spec is the wish. A node is a manager while `Node.manager` is set: from the
//! promotion on, with an id in Raft that no other ever had, until Raft's committed membership lacks
//! it. So a demotion ends only when [`member_removed`] says so, and a removed id never comes back.
//!
//! Source: `SwarmKit`, manager/controlapi/node.go, manager/state/raft, `CanRemoveMember`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use shoal_api::duration::REMOVED_NODE_KEPT;
use shoal_api::time::Timestamp;
use shoal_api::{
    Cluster, JoinRequest, JoinTokens, Kind, ManagerAddress, ManagerStatus, Node, NodeCertificate,
    NodeRole, NodeState, NodeStatus, RemoveNodeRequest, UpdateNodeRequest, validate,
};
use subtle::ConstantTimeEq;

use crate::allocator;
use crate::control::Answer;
use crate::draft::Draft;
use crate::refusal::Refusal;
use crate::store::{Claim, Store};

/// Node ids of the managers that answer the leader; `None` while nobody said, and all count.
pub(crate) type Reachable = Option<BTreeSet<String>>;

/// Makes whoever has a token a member, in the role of the token, or brings a member that comes back
/// up to date: it keeps its spec, its role and its number.
pub(crate) fn join(draft: &mut Draft<'_>, request: JoinRequest) -> Result<Answer, Refusal> {
    let Some(cluster) = draft.cluster() else { return Err(Refusal::NoCluster) };
    let root = cluster.root_ca.as_ref();
    let tokens = root.and_then(|root| root.tokens.as_ref()).ok_or(Refusal::Token)?;
    let role = role_of(tokens, &request.token).ok_or(Refusal::Token)?;
    if cluster.has_removed(&request.node_id) {
        return Err(Refusal::Removed { id: request.node_id });
    }
    admit(draft, request, role)
}

/// The role that a token is for. Takes as long for any text of a token's length.
fn role_of(tokens: &JoinTokens, presented: &str) -> Option<NodeRole> {
    let fits =
        |token: &str| !token.is_empty() && bool::from(token.as_bytes().ct_eq(presented.as_bytes()));
    let (worker, manager) = (fits(&tokens.worker), fits(&tokens.manager));
    match (worker, manager) {
        (_, true) => Some(NodeRole::Manager),
        (true, false) => Some(NodeRole::Worker),
        (false, false) => None,
    }
}

/// A node that may come in comes in.
pub(crate) fn admit(
    draft: &mut Draft<'_>,
    request: JoinRequest,
    role: NodeRole,
) -> Result<Answer, Refusal> {
    let role = draft.node(&request.node_id).map_or(role, |node| node.role());
    check_join(&request, role)?;
    check_ports(draft, &request, role)?;
    let mut node = match draft.node(&request.node_id) {
        Some(node) => Node::clone(node),
        None => new_node(draft, &request)?,
    };
    node.spec.get_or_insert_default().set_role(role);
    if role == NodeRole::Manager {
        // The answer to its first join may have been lost, and it never ran. Later it comes back
        // only without what it had written down, so Raft must not take it for the one before.
        let known = node.manager.as_ref().filter(|_| node.state() == NodeState::Unknown);
        let known = known.map(|manager| manager.raft_id);
        let raft_id = known.unwrap_or_else(|| allocator::raft_id(draft));
        node.manager = Some(ManagerStatus { raft_id, addr: request.addr.clone() });
    }
    describe(&mut node, request);
    certify(draft, &mut node);
    let id = node.id.clone();
    draft.put(node);
    Ok(Answer::Joined(id))
}

/// A member that the store does not know yet.
pub(crate) fn new_node(draft: &mut Draft<'_>, request: &JoinRequest) -> Result<Node, Refusal> {
    Ok(Node {
        id: request.node_id.clone(),
        number: allocator::number_node(draft)?,
        status: Some(NodeStatus { state: NodeState::Unknown.into(), ..NodeStatus::default() }),
        spec: Some(request.spec.clone().unwrap_or_default()),
        ..Node::default()
    })
}

/// Writes down what a join says about its node.
pub(crate) fn describe(node: &mut Node, request: JoinRequest) {
    if request.description.is_some() {
        node.description = request.description;
    }
    node.data_path_addr = request.data_path_addr;
    node.data_path_port = request.data_path_port;
    node.addr = request.addr;
}

/// Writes down that the node gets a certificate now.
fn certify(draft: &Draft<'_>, node: &mut Node) {
    let Some(cluster) = draft.cluster() else { return };
    let role = node.certified_role().into();
    let held = node.certificate.take().map(|certificate| certificate.held_digest);
    node.certificate = Some(NodeCertificate {
        issuer_digest: cluster.issuer_digest().to_owned(),
        role,
        not_after_ns: (draft.now() + cluster.node_cert_expiry()).nanos(),
        held_digest: held.unwrap_or_default(),
    });
}

/// Checks all of a join that needs no other object.
pub(crate) fn check_join(request: &JoinRequest, role: NodeRole) -> Result<(), Refusal> {
    if request.node_id.is_empty() {
        return Err(Refusal::NoNodeId);
    }
    if let Some(spec) = &request.spec {
        validate::node_spec(spec)?;
    }
    if let Some(description) = &request.description {
        validate::node_description(description)?;
    }
    // A worker is asked for it only when it is promoted.
    if role == NodeRole::Manager || !request.addr.is_empty() {
        check_addr(&request.addr)?;
    }
    check_data_path(&request.data_path_addr)
}

/// Whether the node can live beside what is published.
pub(crate) fn check_ports(
    store: &Store,
    request: &JoinRequest,
    role: NodeRole,
) -> Result<(), Refusal> {
    let candidate = Node {
        manager: (role == NodeRole::Manager)
            .then(|| ManagerStatus { addr: request.addr.clone(), raft_id: 0 }),
        data_path_port: request.data_path_port,
        ..Node::default()
    };
    let (manager, data_path) = (candidate.manager_port(), candidate.data_path_port());
    allocator::check_own_ports(store, &request.node_id, manager, data_path)
}

/// Where a gRPC server is reached.
pub(crate) fn check_addr(addr: &str) -> Result<(), Refusal> {
    let parts = addr.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    // A host name has at most 253 octets (RFC 1035).
    if matches!(parts, Some((host, Ok(1..))) if (1..=253).contains(&host.len())) {
        Ok(())
    } else {
        Err(Refusal::Address { addr: addr.to_owned(), expected: "use HOST:PORT" })
    }
}

/// The address that carries the overlay's packets must be one that every node can be given.
pub(crate) fn check_data_path(addr: &str) -> Result<(), Refusal> {
    let expected = "the data path needs an IP address without a port";
    let parsed = addr.parse::<IpAddr>();
    parsed.map(drop).map_err(|_| Refusal::Address { addr: addr.to_owned(), expected })
}

/// A member gets a new certificate, for the role that it has now.
pub(crate) fn renew(draft: &mut Draft<'_>, node_id: &str) -> Result<Answer, Refusal> {
    let Some(cluster) = draft.cluster() else { return Err(Refusal::NoCluster) };
    if cluster.has_removed(node_id) {
        return Err(Refusal::Removed { id: node_id.to_owned() });
    }
    let mut node = find(draft, node_id)?;
    certify(draft, &mut node);
    draft.put(node);
    Ok(Answer::Joined(node_id.to_owned()))
}

/// A user changes labels, availability or role.
pub(crate) fn update(
    draft: &mut Draft<'_>,
    request: UpdateNodeRequest,
    reachable: &Reachable,
) -> Result<Answer, Refusal> {
    let id = request.node_id;
    let mut node = find(draft, &id)?;
    let before = draft.committed().node(&id).and_then(|node| node.spec.as_ref());
    if node.version() != request.version || node.spec.as_ref() != before {
        return Err(Refusal::OutOfSequence);
    }
    let spec = request.spec.ok_or(Refusal::Empty)?;
    validate::node_spec(&spec)?;
    match (node.role(), spec.role()) {
        (NodeRole::Worker, NodeRole::Manager) => promote(draft, &mut node)?,
        (NodeRole::Manager, NodeRole::Worker) => check_demotion(draft, &node, reachable)?,
        _ => {}
    }
    node.spec = Some(spec);
    draft.put(node);
    Ok(Answer::Node(id))
}

/// Gives a worker its place in Raft; the members' reconciler and the node itself do the rest.
fn promote(draft: &mut Draft<'_>, node: &mut Node) -> Result<(), Refusal> {
    if node.is_manager() {
        return Err(Refusal::StillDemoting { id: node.id.clone() });
    }
    if check_addr(&node.addr).is_err() {
        return Err(Refusal::NoAddr { id: node.id.clone() });
    }
    let port = node.addr.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    allocator::check_own_ports(draft, &node.id, port, node.data_path_port())?;
    let raft_id = allocator::raft_id(draft);
    node.manager = Some(ManagerStatus { raft_id, addr: node.addr.clone() });
    Ok(())
}

/// Whether the cluster can do without this manager.
fn check_demotion(store: &Store, node: &Node, reachable: &Reachable) -> Result<(), Refusal> {
    let others = store.nodes().filter(|other| other.id != node.id);
    if !others.into_iter().any(|other| other.role() == NodeRole::Manager) {
        return Err(Refusal::LastManager);
    }
    check_quorum(store, node, reachable)
}

/// Whether those that are left would still be a quorum: of all that Raft may count, and of those
/// that are to stay.
fn check_quorum(store: &Store, node: &Node, reachable: &Reachable) -> Result<(), Refusal> {
    let answers = |other: &&Node| reachable.as_ref().is_none_or(|ids| ids.contains(&other.id));
    let others = || store.nodes().map(|other| &**other).filter(|other| other.id != node.id);
    let counted = || others().filter(|other| other.is_manager());
    let stay = || counted().filter(|other| other.role() == NodeRole::Manager);
    let enough = |answer: usize, all: usize| answer > all / 2;
    if enough(counted().filter(answers).count(), counted().count())
        && enough(stay().filter(answers).count(), stay().count())
    {
        Ok(())
    } else {
        Err(Refusal::LossOfQuorum)
    }
}

/// Raft's committed membership lacks that id: its node is a worker from now on.
pub(crate) fn member_removed(draft: &mut Draft<'_>, raft_id: u64) {
    let Some(id) = draft.holder(&Claim::RaftId(raft_id)) else { return };
    let Some(node) = draft.node(id) else { return };
    // One that was just promoted is not in it yet.
    if node.role() == NodeRole::Worker {
        draft.put(Node { manager: None, ..Node::clone(node) });
    }
}

/// A user takes a node out of the cluster for good.
pub(crate) fn remove(
    draft: &mut Draft<'_>,
    request: &RemoveNodeRequest,
) -> Result<Answer, Refusal> {
    let node = find(draft, &request.node_id)?;
    if node.is_manager() || node.role() == NodeRole::Manager {
        return Err(Refusal::IsManager { id: node.id });
    }
    if node.state() == NodeState::Ready && !request.force {
        return Err(Refusal::NotDown { id: node.id });
    }
    let Some(cluster) = draft.cluster() else { return Err(Refusal::NoCluster) };
    let mut cluster = Cluster::clone(cluster);
    let given = node.certificate.as_ref().map(|given| Timestamp(given.not_after_ns));
    let until = given.unwrap_or_default().max(draft.now()) + REMOVED_NODE_KEPT;
    cluster.removed_nodes.insert(node.id.clone(), until.nanos());
    draft.put(cluster);
    draft.remove(Kind::Node, &node.id);
    Ok(Answer::Removed)
}

/// Forgets removed nodes whose certificates have been expired for long enough.
pub(crate) fn forget_removed(draft: &mut Draft<'_>) {
    let now = draft.now();
    if next_forgotten(draft).is_some_and(|at| at <= now)
        && let Some(cluster) = draft.cluster()
    {
        let mut cluster = Cluster::clone(cluster);
        cluster.removed_nodes.retain(|_, until| Timestamp(*until) > now);
        draft.put(cluster);
    }
}

/// When the next removed node is to be forgotten.
pub(crate) fn next_forgotten(store: &Store) -> Option<Timestamp> {
    store.cluster()?.removed_nodes.values().min().copied().map(Timestamp)
}

/// A node goes for good: it is down and, if it was a manager, on its way out of Raft.
pub(crate) fn leave(
    draft: &mut Draft<'_>,
    node_id: &str,
    reachable: &Reachable,
) -> Result<Answer, Refusal> {
    let mut node = find(draft, node_id)?;
    if node.role() == NodeRole::Manager {
        if draft.nodes().count() == 1 {
            // Nobody is left to remember it.
            return Ok(Answer::Removed);
        }
        let others = draft.nodes().filter(|other| other.id != node.id);
        if !others.into_iter().any(|other| other.role() == NodeRole::Manager) {
            return Err(Refusal::LastManagerLeaves);
        }
        check_quorum(draft, &node, reachable)?;
        node.spec.get_or_insert_default().set_role(NodeRole::Worker);
    }
    node.status = Some(NodeStatus {
        state: NodeState::Down.into(),
        message: "node left the swarm".into(),
        ..node.status.unwrap_or_default()
    });
    draft.put(node);
    Ok(Answer::Removed)
}

/// A manager is reached elsewhere now.
pub(crate) fn moved(draft: &mut Draft<'_>, at: ManagerAddress) -> Result<Answer, Refusal> {
    let mut node = find(draft, &at.node_id)?;
    let Some(manager) = node.manager.as_mut().filter(|manager| manager.raft_id == at.raft_id)
    else {
        return Err(Refusal::NotInRaft);
    };
    check_addr(&at.addr)?;
    manager.addr.clone_from(&at.addr);
    node.addr = at.addr;
    allocator::check_own_ports(draft, &node.id, node.manager_port(), node.data_path_port())?;
    let id = node.id.clone();
    draft.put(node);
    Ok(Answer::Node(id))
}

fn find(store: &Store, id: &str) -> Result<Node, Refusal> {
    let missing = || Refusal::NotFound { what: "node", id: id.to_owned() };
    store.node(id).map(|node| Node::clone(node)).ok_or_else(missing)
}
