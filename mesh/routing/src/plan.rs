//! Everything that one node's kernel must hold.
//!
//! [`State`] takes the assignments that came down the dispatcher's stream; [`Plan`] is the tables
//! that follow from it. Rings are computed for services whose backends changed only. What an
//! assignment says wrongly (an address that is none, a number out of range) is left out of the
//! plan and listed by [`State::problems`]; it never stops the rest.
//!
//! A frontend is planned only if a packet that meets it can reach a backend. Without one the port
//! is not ours: the host's own stack answers with a reset, and a client knows at once, where a
//! frontend with an empty ring could only let it wait. A service whose backends all drain keeps
//! them in the ring until they are gone: a refused connection is no better than a late one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use shoal_api::{
    AssignmentChange, Assignments, AssignmentsType, BackendState, Protocol, RouteBackend,
    RouteNode, RouteService, assignment_change::Item,
};
use shoal_datapath::abi::{Address, Backend, Frontend, Mac, NODES_MAX, Slot};

use crate::ring::{self, Member};

/// The tables of one node, without what only the node itself knows (interfaces, next hops).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Raft index that this plan stands for. A name for the plan: no table holds it.
    pub index: u64,
    /// This node's number; 0 until the managers gave it one.
    pub node: u16,
    /// By `protocol index << 16 | port` ([`shoal_datapath::abi::FRONTENDS_MAX`]).
    pub frontends: BTreeMap<u32, Frontend>,
    /// By service number. Shared, since a ring is 64 KiB and most plans keep most rings.
    pub rings: BTreeMap<u16, Arc<Vec<Slot>>>,
    /// By backend number.
    pub backends: BTreeMap<u16, Backend>,
    /// Data-path address by node number.
    pub nodes: BTreeMap<u16, Address>,
}

/// Changes that do not follow on what is held: the session must start again with a full set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("assignments apply to index {applies_to}, but index {held} is held")]
pub struct Gap {
    /// Index that is held.
    pub held: u64,
    /// Index that the changes need.
    pub applies_to: u64,
}

/// What an assignment says that no table can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The node has no number that the tables can hold, or no address.
    #[error("node {number}: data-path address {address:?} cannot be used")]
    Node {
        /// The node's number as given.
        number: u32,
        /// Its address as given.
        address: String,
    },
    /// The service's number does not fit.
    #[error("service {name:?}: number {number} is out of range")]
    Service {
        /// The number as given.
        number: u32,
        /// The service's name.
        name: String,
    },
    /// Protocol or port do not exist.
    #[error("service {name:?}: port {published} to {target} (protocol {protocol}) cannot be used")]
    Port {
        /// The service's name.
        name: String,
        /// Published port as given.
        published: u32,
        /// Target port as given.
        target: u32,
        /// Protocol as given.
        protocol: i32,
    },
    /// Two services publish the same port; the one with the lower number has it.
    #[error("port {port} of service {name:?} belongs to service number {owner}")]
    PortTaken {
        /// The service that goes without.
        name: String,
        /// The published port.
        port: u16,
        /// Number of the service that has it.
        owner: u16,
    },
    /// The backend's number, address or MAC cannot be used.
    #[error(
        "task {task_id}: backend {number} with address {address:?}, MAC {mac:?} cannot be used"
    )]
    Backend {
        /// The backend's number as given.
        number: u32,
        /// Its task.
        task_id: String,
        /// Its address as given.
        address: String,
        /// Its MAC as given.
        mac: String,
    },
    /// The backend's node is not among the nodes.
    #[error("task {task_id}: its node {node} is not known")]
    NodeUnknown {
        /// The task.
        task_id: String,
        /// Its node's number.
        node: u32,
    },
}

/// What came down the dispatcher's stream, by number.
#[derive(Debug, Default)]
pub struct State {
    index: u64,
    nodes: BTreeMap<u32, RouteNode>,
    services: BTreeMap<u32, RouteService>,
    backends: BTreeMap<u32, RouteBackend>,
    /// The last plan's rings and what they were made of.
    rings: BTreeMap<u16, (Vec<Member>, Arc<Vec<Slot>>)>,
    problems: Vec<Problem>,
}

/// Key of a frontend: `protocol index << 16 | port`, TCP 0, UDP 1.
#[must_use]
pub fn frontend_key(protocol: Protocol, port: u16) -> u32 {
    let index = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    };
    index << 16 | u32::from(port)
}

/// An address as the tables hold it: IPv4 as `::ffff:a.b.c.d`.
#[must_use]
pub fn address_bytes(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Reads `aa:bb:cc:dd:ee:ff`. `None` also for a MAC that can name no task: all zero, or a group.
#[must_use]
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let group = mac[0] & 1 == 1;
    (parts.next().is_none() && !group && mac != Mac::default()).then_some(mac)
}

fn parse_address(text: &str) -> Option<Address> {
    let address: IpAddr = text.parse().ok()?;
    let usable = !address.is_unspecified() && !address.is_multicast();
    usable.then(|| address_bytes(address))
}

impl State {
    /// Takes a full set or the next changes.
    ///
    /// Tasks among them are the caller's business and are passed over.
    ///
    /// # Errors
    /// [`Gap`] when changes were lost; nothing has changed then.
    pub fn apply(&mut self, assignments: &Assignments) -> Result<(), Gap> {
        match assignments.r#type() {
            AssignmentsType::Complete => {
                self.nodes.clear();
                self.services.clear();
                self.backends.clear();
            }
            AssignmentsType::Changes if assignments.applies_to != self.index => {
                return Err(Gap { held: self.index, applies_to: assignments.applies_to });
            }
            AssignmentsType::Changes => {}
        }
        for change in &assignments.changes {
            self.change(change);
        }
        self.index = assignments.results_in;
        Ok(())
    }

    /// Raft index of what is held.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// What the last plan had to leave out.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The tables of the node with this id.
    ///
    /// While the node has no number of its own, there are no frontends: a local backend could not
    /// be told from a remote one.
    pub fn plan(&mut self, node_id: &str) -> Plan {
        self.problems.clear();
        let (node, nodes) = self.plan_nodes(node_id);
        let (backends, members) = self.plan_backends(&nodes);
        let mut plan = Plan { index: self.index, node, nodes, backends, ..Plan::default() };
        if node != 0 {
            self.plan_frontends(&mut plan, &members);
        }
        self.rings.retain(|number, _| plan.rings.contains_key(number));
        plan
    }

    fn change(&mut self, change: &AssignmentChange) {
        match &change.item {
            Some(Item::Node(node)) => put(&mut self.nodes, node.number, node, change.remove),
            Some(Item::Service(service)) => {
                put(&mut self.services, service.number, service, change.remove);
            }
            Some(Item::Backend(backend)) => {
                put(&mut self.backends, backend.number, backend, change.remove);
            }
            Some(Item::Task(_)) | None => {}
        }
    }

    fn plan_nodes(&mut self, node_id: &str) -> (u16, BTreeMap<u16, Address>) {
        let mut own = 0;
        let mut nodes = BTreeMap::new();
        for (number, node) in &self.nodes {
            let fits = u16::try_from(*number).ok().filter(|n| *n != 0 && *number < NODES_MAX);
            match (fits, parse_address(&node.data_path_addr)) {
                (Some(number), Some(address)) => {
                    nodes.insert(number, address);
                    if node.node_id == node_id {
                        own = number;
                    }
                }
                _ => self
                    .problems
                    .push(Problem::Node { number: *number, address: node.data_path_addr.clone() }),
            }
        }
        (own, nodes)
    }

    /// All backends whose node is known, and by service number the members of its ring.
    fn plan_backends(
        &mut self,
        nodes: &BTreeMap<u16, Address>,
    ) -> (BTreeMap<u16, Backend>, BTreeMap<u32, Vec<Member>>) {
        let mut backends = BTreeMap::new();
        let mut members: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
        for (number, backend) in &self.backends {
            let fits = u16::try_from(*number).ok().filter(|number| *number != 0);
            let (Some(fits), Some(address), Some(mac)) =
                (fits, parse_address(&backend.address), parse_mac(&backend.mac))
            else {
                self.problems.push(Problem::Backend {
                    number: *number,
                    task_id: backend.task_id.clone(),
                    address: backend.address.clone(),
                    mac: backend.mac.clone(),
                });
                continue;
            };
            let Some(node) = u16::try_from(backend.node).ok().filter(|n| nodes.contains_key(n))
            else {
                self.problems.push(Problem::NodeUnknown {
                    task_id: backend.task_id.clone(),
                    node: backend.node,
                });
                continue;
            };
            backends.insert(fits, Backend { address, mac, node });
            let active = backend.state() == BackendState::Active;
            members.entry(backend.service).or_default().push(Member { number: fits, active });
        }
        (backends, members)
    }

    fn plan_frontends(&mut self, plan: &mut Plan, members: &BTreeMap<u32, Vec<Member>>) {
        let services = std::mem::take(&mut self.services);
        for (number, service) in &services {
            let Some(number) = u16::try_from(*number).ok().filter(|number| *number != 0) else {
                let name = service.name.clone();
                self.problems.push(Problem::Service { number: *number, name });
                continue;
            };
            let Some(members) = members.get(&u32::from(number)) else { continue };
            self.plan_ports(plan, number, service);
            if plan.frontends.values().any(|frontend| frontend.service == number) {
                plan.rings.insert(number, self.ring(number, members));
            }
        }
        self.services = services;
    }

    fn plan_ports(&mut self, plan: &mut Plan, number: u16, service: &RouteService) {
        for port in &service.ports {
            let published = u16::try_from(port.published_port).ok().filter(|port| *port != 0);
            let target = u16::try_from(port.target_port).ok().filter(|port| *port != 0);
            let protocol = Protocol::try_from(port.protocol).ok();
            let (Some(published), Some(target_port), Some(protocol)) =
                (published, target, protocol)
            else {
                self.problems.push(Problem::Port {
                    name: service.name.clone(),
                    published: port.published_port,
                    target: port.target_port,
                    protocol: port.protocol,
                });
                continue;
            };
            let frontend = Frontend { service: number, target_port, flags: 0 };
            let key = frontend_key(protocol, published);
            let held = *plan.frontends.entry(key).or_insert(frontend);
            if held != frontend {
                self.problems.push(Problem::PortTaken {
                    name: service.name.clone(),
                    port: published,
                    owner: held.service,
                });
            }
        }
    }

    /// The service's ring, computed only if its members are not those of the last time.
    fn ring(&mut self, service: u16, members: &[Member]) -> Arc<Vec<Slot>> {
        let mut members = members.to_vec();
        if members.iter().all(|member| !member.active) {
            members.iter_mut().for_each(|member| member.active = true);
        }
        if let Some((held, ring)) = self.rings.get(&service)
            && *held == members
        {
            return Arc::clone(ring);
        }
        // The service's number is the only seed: two services with the same backends must not
        // have the same ring, and every node must come to the same one.
        let ring = Arc::new(ring::ring(&members, ring::mix(u64::from(service))));
        self.rings.insert(service, (members, Arc::clone(&ring)));
        ring
    }
}

fn put<T: Clone>(table: &mut BTreeMap<u32, T>, number: u32, item: &T, remove: bool) {
    if remove {
        table.remove(&number);
    } else {
        table.insert(number, item.clone());
    }
}

#[cfg(test)]
mod tests;
