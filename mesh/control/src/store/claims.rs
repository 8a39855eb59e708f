//! What only one object may hold at a time, and who holds it.
//!
//! Names, numbers, ports and addresses live in one map beside the tables. The allocator reads it to
//! find what is free, and [`Store::apply`](super::Store::apply) refuses a batch that would give
//! anything twice, so a fault in a role cannot become two tasks with one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use shoal_api::{Node, Object, Service, Task, object};

/// Something that one object holds and no other may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A service's name, until its removal is asked for.
    ServiceName(String),
    /// A service's number in the data plane.
    ServiceNumber(u32),
    /// A published port: protocol as the protos number it, and port.
    Port(i32, u32),
    /// A node's number in the data plane.
    NodeNumber(u32),
    /// A manager's id in Raft.
    RaftId(u64),
    /// A task's number in the data plane.
    Backend(u32),
    /// A task's address on the network of that id.
    Address(String, Ipv4Addr),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceName(name) => write!(f, "service name {name}"),
            Self::ServiceNumber(number) => write!(f, "service number {number}"),
            Self::Port(protocol, port) => write!(f, "port {port} of protocol {protocol}"),
            Self::NodeNumber(number) => write!(f, "node number {number}"),
            Self::RaftId(id) => write!(f, "raft id {id}"),
            Self::Backend(number) => write!(f, "backend number {number}"),
            Self::Address(network, address) => write!(f, "address {address} on network {network}"),
        }
    }
}

/// What an object holds.
pub(super) fn of(object: &Object) -> Vec<Claim> {
    match &object.object {
        Some(object::Object::Node(node)) => of_node(node),
        Some(object::Object::Service(service)) => of_service(service),
        Some(object::Object::Task(task)) => of_task(task),
        _ => Vec::new(),
    }
}

fn of_node(node: &Node) -> Vec<Claim> {
    let number = (node.number != 0).then_some(Claim::NodeNumber(node.number));
    let raft_id = node.manager.as_ref().map(|manager| manager.raft_id).filter(|id| *id != 0);
    number.into_iter().chain(raft_id.map(Claim::RaftId)).collect()
}

/// A service that is being removed keeps its number, which its tasks still carry, and its ports
/// until somebody else wants them, but not its name: `rm` and `create` may follow each other.
fn of_service(service: &Service) -> Vec<Claim> {
    let name = (!service.pending_delete).then(|| Claim::ServiceName(service.name().to_owned()));
    let number = (service.number != 0).then_some(Claim::ServiceNumber(service.number));
    let ports = service.ports.iter().filter(|port| port.published_port != 0);
    name.into_iter()
        .chain(number)
        .chain(ports.map(|port| Claim::Port(port.protocol, port.published_port)))
        .collect()
}

fn of_task(task: &Task) -> Vec<Claim> {
    let claims = task.attachments.iter().flat_map(|attachment| {
        let backend = (attachment.backend != 0).then_some(Claim::Backend(attachment.backend));
        let address = address(&attachment.address)
            .map(|address| Claim::Address(attachment.network_id.clone(), address));
        backend.into_iter().chain(address)
    });
    claims.collect()
}

/// The address of `10.0.0.5/24` or `10.0.0.5`.
pub(crate) fn address(with_prefix: &str) -> Option<Ipv4Addr> {
    let address = with_prefix.split('/').next()?.parse().ok()?;
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
