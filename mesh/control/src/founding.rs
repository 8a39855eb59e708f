//! The first write of a cluster, and the one by which a manager goes on without the others.
//!
//! The founder brings what only chance can give (root, tokens, unlock key), made before there is a
//! manager: its own certificate is of that root. After `--force-new-cluster` the store says what
//! Raft's membership says by then: one manager, all other nodes workers, and nothing else changed.

use std::fmt;

use ipnetwork::Ipv4Network;
use shoal_api::id::IdSource;
use shoal_api::{
    ADDRESS_POOL, Cluster, ClusterSpec, Cursors, JoinRequest, ManagerStatus, Network, NetworkSpec,
    Node, NodeRole, RootCa, SUBNET_SIZE, validate,
};

use crate::control::Answer;
use crate::draft::Draft;
use crate::membership;
use crate::refusal::Refusal;

/// What the first manager brings.
#[derive(Clone, Default)]
pub struct Founding {
    /// The manager's own node.
    pub node: JoinRequest,
    /// As the manager's certificate says it; empty lets control make one.
    pub cluster_id: String,
    /// Root with its key, digest and both tokens.
    pub root_ca: RootCa,
    /// `SWMKEY-1-…`; empty without autolock.
    pub unlock_key: String,
    /// What the operator wants; `None` is all defaults.
    pub spec: Option<ClusterSpec>,
    /// CIDRs that subnets are cut from, the ingress network's first; empty means `10.0.0.0/8`.
    pub address_pools: Vec<String>,
    /// Prefix length of those subnets; 0 means 24.
    pub subnet_size: u32,
}

/// Shows no secret.
impl fmt::Debug for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Founding")
            .field("node", &self.node)
            .field("cluster_id", &self.cluster_id)
            .field("root_ca", &self.root_ca)
            .field("spec", &self.spec)
            .field("address_pools", &self.address_pools)
            .field("subnet_size", &self.subnet_size)
            .finish_non_exhaustive()
    }
}

/// Stages the cluster itself, where there is none, and then the manager's own node.
pub(crate) fn bootstrap(
    draft: &mut Draft<'_>,
    ids: &mut IdSource,
    founding: Founding,
) -> Result<Answer, Refusal> {
    let Founding { mut node, cluster_id, root_ca, unlock_key, spec, address_pools, subnet_size } =
        founding;
    node.spec.get_or_insert_default().set_role(NodeRole::Manager);
    membership::check_join(&node, NodeRole::Manager)?;
    if draft.cluster().is_none() {
        let mut spec = spec.unwrap_or_default();
        if spec.name.is_empty() {
            spec.name = validate::CLUSTER_NAME.into();
        }
        validate::cluster_spec(&spec)?;
        validate::address_pools(&address_pools, subnet_size)?;
        if spec.autolock == unlock_key.is_empty() {
            return Err(Refusal::UnlockKey);
        }
        let network = ingress_network(ids.next_id(), &address_pools, subnet_size)?;
        let id = if cluster_id.is_empty() { ids.next_id() } else { cluster_id };
        draft.put(Cluster {
            id,
            name: validate::CLUSTER_NAME.into(),
            seed: ids.next_u64(),
            last: Some(Cursors::default()),
            spec: Some(spec),
            root_ca: Some(root_ca),
            unlock_key,
            address_pools,
            subnet_size,
            ..Cluster::default()
        });
        draft.put(network);
    }
    membership::admit(draft, node, NodeRole::Manager)
}

/// The mesh's own network: the first subnet of the first pool.
fn ingress_network(id: String, pools: &[String], size: u32) -> Result<Network, Refusal> {
    let pool = pools.first().map_or(ADDRESS_POOL, String::as_str);
    let wrong = || Refusal::Subnet { subnet: pool.to_owned() };
    let parsed: Ipv4Network = pool.parse().map_err(|_| wrong())?;
    let size = u8::try_from(if size == 0 { SUBNET_SIZE } else { size }).map_err(|_| wrong())?;
    let subnet = Ipv4Network::new(parsed.network(), size).map_err(|_| wrong())?;
    let gateway = subnet.nth(1).ok_or_else(wrong)?;
    let spec = NetworkSpec { name: "ingress".into(), subnet: subnet.to_string(), ingress: true };
    let gateway = format!("{gateway}/{size}");
    // The first search goes on after the gateway.
    Ok(Network { id, meta: None, spec: Some(spec), gateway, last_address: 1 })
}

/// Stages what a membership of one manager means: the others are workers from now on.
///
/// * `raft_id` - as this manager's own membership says it, made offline.
pub(crate) fn force_new(
    draft: &mut Draft<'_>,
    request: JoinRequest,
    raft_id: u64,
) -> Result<Answer, Refusal> {
    membership::check_join(&request, NodeRole::Manager)?;
    let Some(cluster) = draft.cluster().cloned() else { return Err(Refusal::NoCluster) };
    membership::check_ports(draft, &request, NodeRole::Manager)?;
    let known = draft.node(&request.node_id).cloned();
    let others = draft.nodes().filter(|node| node.id != request.node_id);
    let others = others.filter(|node| node.is_manager() || node.role() == NodeRole::Manager);
    let others: Vec<_> = others.map(|node| Node::clone(node)).collect();
    let mut node = match known {
        Some(node) => Node::clone(&node),
        None => membership::new_node(draft, &request)?,
    };
    for mut other in others {
        other.manager = None;
        other.spec.get_or_insert_default().set_role(NodeRole::Worker);
        draft.put(other);
    }
    let mut cluster = Cluster::clone(draft.cluster().unwrap_or(&cluster));
    let last = cluster.last.get_or_insert_default();
    last.raft_id = last.raft_id.max(raft_id);
    // The operator wants it back, so it is not among the removed any more.
    cluster.removed_nodes.remove(&request.node_id);
    draft.put(cluster);
    node.spec.get_or_insert_default().set_role(NodeRole::Manager);
    node.manager = Some(ManagerStatus { raft_id, addr: request.addr.clone() });
    membership::describe(&mut node, request);
    let id = node.id.clone();
    draft.put(node);
    Ok(Answer::Joined(id))
}
