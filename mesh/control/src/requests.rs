//! What users and joining nodes ask for: checks it and stages it, or refuses it whole.
//!
//! Every check comes before the first write, so a refusal leaves nothing behind. Specs are stored
//! as the user gave them; what the system adds (numbers, ports) stands beside the spec.

use std::net::IpAddr;

use ipnetwork::Ipv4Network;
use shoal_api::id::IdSource;
use shoal_api::{
    Caller, Cluster, CreateServiceRequest, Cursors, JoinRequest, ManagerStatus, Network,
    NetworkSpec, Node, NodeRole, NodeState, NodeStatus, PortConfig, RemoveServiceRequest, Service,
    ServiceSpec, UpdateNodeRequest, UpdateServiceRequest, Write, validate, write,
};

use crate::allocator;
use crate::control::Answer;
use crate::draft::Draft;
use crate::refusal::Refusal;
use crate::store::Store;

/// The tasks' subnet when the first manager names none; Docker's first (swarm.md W8).
const INGRESS_SUBNET: &str = "10.0.0.0/24";

/// Stages one write.
///
/// `caller` is who asked: until there are certificates every caller may do everything.
pub(crate) fn write(
    draft: &mut Draft<'_>,
    ids: &mut IdSource,
    _caller: &Caller,
    write: Write,
) -> Result<Answer, Refusal> {
    match write.write.ok_or(Refusal::Empty)? {
        write::Write::CreateService(request) => create_service(draft, ids, request),
        write::Write::UpdateService(request) => update_service(draft, request),
        write::Write::RemoveService(request) => remove_service(draft, &request),
        write::Write::UpdateNode(request) => update_node(draft, request),
        write::Write::Join(request) => join(draft, request),
        write::Write::RemoveNode(_)
        | write::Write::UpdateCluster(_)
        | write::Write::Renew(_)
        | write::Write::Leave(_)
        | write::Write::Moved(_) => Err(Refusal::Empty),
    }
}

/// Stages the cluster itself, where there is none, and then the manager's own node.
pub(crate) fn bootstrap(
    draft: &mut Draft<'_>,
    ids: &mut IdSource,
    mut node: JoinRequest,
    ingress_subnet: &str,
) -> Result<Answer, Refusal> {
    node.spec.get_or_insert_default().set_role(NodeRole::Manager);
    check_join(&node)?;
    if draft.cluster().is_none() {
        let subnet = if ingress_subnet.is_empty() { INGRESS_SUBNET } else { ingress_subnet };
        let network = ingress_network(ids.next_id(), subnet)?;
        draft.put(Cluster {
            id: ids.next_id(),
            meta: None,
            name: "default".into(),
            seed: ids.next_u64(),
            last: Some(Cursors::default()),
            ..Cluster::default()
        });
        draft.put(network);
    }
    join(draft, node)
}

fn ingress_network(id: String, subnet: &str) -> Result<Network, Refusal> {
    let wrong = || Refusal::Subnet { subnet: subnet.to_owned() };
    let parsed: Ipv4Network = subnet.parse().map_err(|_| wrong())?;
    if parsed.prefix() > 29 || parsed.prefix() < 8 {
        return Err(wrong());
    }
    let gateway = parsed.nth(1).ok_or_else(wrong)?;
    let subnet = format!("{}/{}", parsed.network(), parsed.prefix());
    let spec = NetworkSpec { name: "ingress".into(), subnet, ingress: true };
    let gateway = format!("{gateway}/{}", parsed.prefix());
    // The first search goes on after the gateway.
    Ok(Network { id, meta: None, spec: Some(spec), gateway, last_address: 1 })
}

fn create_service(
    draft: &mut Draft<'_>,
    ids: &mut IdSource,
    request: CreateServiceRequest,
) -> Result<Answer, Refusal> {
    let spec = request.spec.ok_or(Refusal::Empty)?;
    validate::service_spec(&spec)?;
    if draft.service_by_name(&spec.name).is_some() {
        return Err(Refusal::NameTaken { name: spec.name });
    }
    if draft.ingress_network().is_none() {
        return Err(Refusal::NoIngressNetwork);
    }
    let ports = allocator::choose_ports(draft, "", wishes(&spec), &[])?;
    let number = allocator::number_service(draft)?;
    let id = draft.fresh_id(ids);
    allocator::take_over_ports(draft, &id, &ports);
    draft.put(Service {
        id: id.clone(),
        meta: None,
        spec: Some(spec),
        spec_version: 1,
        ports,
        number,
        pending_delete: false,
    });
    Ok(Answer::Service(id))
}

fn update_service(draft: &mut Draft<'_>, request: UpdateServiceRequest) -> Result<Answer, Refusal> {
    let mut service = find_service(draft, &request.service_id)?;
    let before = draft.committed().service(&service.id).and_then(|service| service.spec.as_ref());
    if service.version() != request.version || service.spec.as_ref() != before {
        return Err(Refusal::OutOfSequence);
    }
    let spec = request.spec.ok_or(Refusal::Empty)?;
    if spec.name != service.name() {
        return Err(Refusal::Rename);
    }
    validate::service_spec(&spec)?;
    let ports = allocator::choose_ports(draft, &service.id, wishes(&spec), &service.ports)?;
    if service.spec.as_ref().and_then(|old| old.task.as_ref()) != spec.task.as_ref() {
        service.spec_version += 1;
    }
    allocator::take_over_ports(draft, &service.id, &ports);
    let id = service.id.clone();
    draft.put(Service { spec: Some(spec), ports, ..service });
    Ok(Answer::Service(id))
}

fn remove_service(
    draft: &mut Draft<'_>,
    request: &RemoveServiceRequest,
) -> Result<Answer, Refusal> {
    let service = find_service(draft, &request.service_id)?;
    draft.put(Service { pending_delete: true, ..service });
    Ok(Answer::Removed)
}

fn update_node(draft: &mut Draft<'_>, request: UpdateNodeRequest) -> Result<Answer, Refusal> {
    let id = request.node_id;
    let missing = || Refusal::NotFound { what: "node", id: id.clone() };
    let mut node = Node::clone(draft.node(&id).ok_or_else(missing)?);
    let before = draft.committed().node(&id).and_then(|node| node.spec.as_ref());
    if node.version() != request.version || node.spec.as_ref() != before {
        return Err(Refusal::OutOfSequence);
    }
    let spec = request.spec.ok_or(Refusal::Empty)?;
    if spec.role() != node.role() {
        return Err(Refusal::RoleChange { wanted: role_word(spec.role()) });
    }
    node.spec = Some(spec);
    draft.put(node);
    Ok(Answer::Node(id))
}

/// Makes a node a member, or brings a member that comes back up to date: it keeps its spec, its
/// number and its id in Raft.
fn join(draft: &mut Draft<'_>, request: JoinRequest) -> Result<Answer, Refusal> {
    check_join(&request)?;
    if draft.cluster().is_none() {
        return Err(Refusal::NoCluster);
    }
    let spec = request.spec.unwrap_or_default();
    let candidate = Node {
        manager: (spec.role() == NodeRole::Manager)
            .then(|| ManagerStatus { addr: request.addr.clone(), raft_id: 0 }),
        data_path_port: request.data_path_port,
        ..Node::default()
    };
    let (manager, data_path) = (candidate.manager_port(), candidate.data_path_port());
    allocator::check_own_ports(draft, &request.node_id, manager, data_path)?;
    let mut node = match draft.node(&request.node_id) {
        Some(node) if node.role() != spec.role() => {
            return Err(Refusal::RoleChange { wanted: role_word(spec.role()) });
        }
        Some(node) => Node::clone(node),
        None => Node {
            id: request.node_id,
            number: allocator::number_node(draft)?,
            status: Some(NodeStatus { state: NodeState::Unknown.into(), ..NodeStatus::default() }),
            spec: Some(spec),
            ..Node::default()
        },
    };
    if node.role() == NodeRole::Manager {
        let known = node.manager.as_ref().map(|manager| manager.raft_id);
        let raft_id = known.unwrap_or_else(|| allocator::raft_id(draft));
        node.manager = Some(ManagerStatus { raft_id, addr: request.addr });
    }
    node.description = request.description.or(node.description);
    node.data_path_addr = request.data_path_addr;
    node.data_path_port = request.data_path_port;
    let id = node.id.clone();
    draft.put(node);
    Ok(Answer::Joined(id))
}

/// Checks all of a join that needs no other object.
fn check_join(request: &JoinRequest) -> Result<(), Refusal> {
    if request.node_id.is_empty() {
        return Err(Refusal::NoNodeId);
    }
    let role = request.spec.as_ref().map_or(NodeRole::Worker, shoal_api::NodeSpec::role);
    let port = request.addr.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    if role == NodeRole::Manager && !matches!(port, Some((host, Ok(1..))) if !host.is_empty()) {
        return Err(Refusal::Address { addr: request.addr.clone(), expected: "use HOST:PORT" });
    }
    check_data_path(&request.data_path_addr)
}

/// The address that carries the overlay's packets must be one that every node can be given.
pub(crate) fn check_data_path(addr: &str) -> Result<(), Refusal> {
    let expected = "the data path needs an IP address without a port";
    let parsed = addr.parse::<IpAddr>();
    parsed.map(drop).map_err(|_| Refusal::Address { addr: addr.to_owned(), expected })
}

/// By id, else by name. One that is being removed is not there for users.
fn find_service(store: &Store, id: &str) -> Result<Service, Refusal> {
    let by_id = store.service(id).filter(|service| !service.pending_delete);
    let service = by_id.or_else(|| store.service_by_name(id));
    let missing = || Refusal::NotFound { what: "service", id: id.to_owned() };
    service.map(|service| Service::clone(service)).ok_or_else(missing)
}

fn wishes(spec: &ServiceSpec) -> &[PortConfig] {
    spec.endpoint.as_ref().map_or(&[], |endpoint| &endpoint.ports)
}

fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}
