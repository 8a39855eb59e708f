//! Gives numbers, ports and addresses, each to one object at a time.
//!
//! What is in use is read from the store's claims, so there is no second book that could differ,
//! and a new leader knows all of it. Numbers and addresses are searched from the one given last, so
//! a packet on its way to a task that ended does not meet its successor.
//!
//! A task keeps its address while its object exists. Only when the subnet is used up are ended
//! tasks' addresses taken back early, and then only those whose end every ready node's kernel
//! knows. A task that gets none stays `NEW`, says why, and is served when something is freed.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use shoal_api::{
    Attachment, Cursors, Network, Node, PortConfig, Protocol, Service, Task, TaskState, TaskStatus,
};

use crate::draft::{Draft, Touched};
use crate::refusal::Refusal;
use crate::store::{Claim, Store, address};

/// Ports that are chosen when the spec names none (swarm.md S12).
const DYNAMIC_PORTS: std::ops::RangeInclusive<u32> = 30_000..=32_767;
/// Nodes fit in 12 bits of the data plane's tables.
pub(crate) const NODES_MAX: u32 = 4_095;
/// Services and backends fit in 16 bits.
const NUMBERS_MAX: u32 = 65_535;

/// Gives new tasks their address and backend number: `NEW` to `PENDING`.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    /// New tasks without an address.
    waiting: BTreeSet<String>,
    /// Whether trying again may help.
    retry: bool,
    settled: u64,
}

impl Allocator {
    pub(crate) fn reset(&mut self, store: &Store) {
        let new = store.tasks().filter(|task| task.state() == TaskState::New);
        self.waiting = new.map(|task| task.id.clone()).collect();
        self.retry = true;
    }

    /// * `settled` - Raft index that every ready node's kernel holds.
    pub(crate) fn step(&mut self, draft: &mut Draft<'_>, news: &BTreeSet<Touched>, settled: u64) {
        self.retry |= settled > self.settled;
        self.settled = settled;
        for touched in news {
            match touched {
                Touched::Task { id, .. } => match draft.task(id) {
                    Some(task) if task.state() == TaskState::New => {
                        self.retry |= self.waiting.insert(id.clone());
                    }
                    Some(_) => {}
                    None => self.retry = true,
                },
                Touched::Other => self.retry = true,
                Touched::Node(_) | Touched::Service(_) => {}
            }
        }
        if !std::mem::take(&mut self.retry) || self.waiting.is_empty() {
            return;
        }
        let Some(network) = draft.ingress_network().cloned() else { return };
        self.serve(draft, Pool::new(&network), settled);
    }

    /// Serves the waiting tasks, the oldest first.
    fn serve(&mut self, draft: &mut Draft<'_>, mut pool: Pool, settled: u64) {
        let tasks = self.waiting.iter().filter_map(|id| draft.task(id).cloned());
        let mut tasks: Vec<_> = tasks
            .filter(|task| task.state() == TaskState::New)
            .filter(|task| task.desired_state() <= TaskState::Running)
            .collect();
        tasks.sort_by_cached_key(|task| {
            let created = task.meta.as_ref().map_or(u64::MAX, |meta| meta.created_at_ns);
            (created, task.service_name.clone(), task.slot, task.id.clone())
        });
        self.waiting.clear();
        let mut released = false;
        let mut full: Option<String> = None;
        for task in tasks {
            // A batch that is full is followed by a full pass, which finds it again.
            if !draft.has_room_for(&task.id) {
                self.waiting.insert(task.id.clone());
                continue;
            }
            let mut given = if full.is_some() { None } else { pool.attachment(draft) };
            if given.is_none() && !released {
                released = true;
                release_ended(draft, settled);
                given = pool.attachment(draft);
            }
            let mut task = Task::clone(&task);
            if let Some(attachment) = given {
                task.attachments = vec![attachment];
                task.status = Some(TaskStatus {
                    state: TaskState::Pending.into(),
                    timestamp_ns: draft.now().nanos(),
                    message: "pending task scheduling".into(),
                    ..TaskStatus::default()
                });
            } else {
                let err = full.get_or_insert_with(|| pool.exhausted(draft)).clone();
                task.status.get_or_insert_default().err = err;
                self.waiting.insert(task.id.clone());
            }
            draft.put(task);
        }
        pool.keep_cursors(draft);
    }
}

/// The addresses of one network, and the backend numbers.
struct Pool {
    network: std::sync::Arc<Network>,
    subnet: Option<Ipv4Network>,
    gateway: Option<Ipv4Addr>,
    last_address: u32,
    last_backend: Option<u32>,
}

impl Pool {
    fn new(network: &std::sync::Arc<Network>) -> Self {
        let subnet = network.spec.as_ref().and_then(|spec| spec.subnet.parse().ok());
        Self {
            network: network.clone(),
            subnet,
            gateway: address(&network.gateway),
            last_address: network.last_address,
            last_backend: None,
        }
    }

    /// The next free address and number, put down as the last given.
    fn attachment(&mut self, draft: &Draft<'_>) -> Option<Attachment> {
        let subnet = self.subnet?;
        let network_id = &self.network.id;
        let host = |offset| Ipv4Addr::from_bits(subnet.network().to_bits() + offset);
        let free = |offset: u32| {
            let address = host(offset);
            Some(address) != self.gateway
                && draft.holder(&Claim::Address(network_id.clone(), address)).is_none()
        };
        let offset = next_free(self.last_address, 1, subnet.size().checked_sub(2)?, free)?;
        let last = self.last_backend.unwrap_or_else(|| cursors(draft).backend);
        let number = next_free(last, 1, NUMBERS_MAX, |number| {
            draft.holder(&Claim::Backend(number)).is_none()
        })?;
        (self.last_address, self.last_backend) = (offset, Some(number));
        let [a, b, c, d] = host(offset).octets();
        Some(Attachment {
            network_id: network_id.clone(),
            address: format!("{a}.{b}.{c}.{d}/{}", subnet.prefix()),
            mac: format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}"),
            backend: number,
        })
    }

    /// Says that nothing is left, and how much there was.
    fn exhausted(&self, draft: &Draft<'_>) -> String {
        let spec = self.network.spec.clone().unwrap_or_default();
        // Without the network's own address, its broadcast address and the gateway.
        let size = self.subnet.map_or(0, |subnet| subnet.size().saturating_sub(3));
        let attached = |task: &&std::sync::Arc<Task>| task.attachment(&self.network.id).is_some();
        let in_use = draft.tasks().filter(attached).count();
        format!(
            "no address is free in network {} ({}): {in_use} of {size} in use",
            spec.name, spec.subnet
        )
    }

    fn keep_cursors(self, draft: &mut Draft<'_>) {
        if self.last_address != self.network.last_address {
            let network = Network::clone(&self.network);
            draft.put(Network { last_address: self.last_address, ..network });
        }
        if let Some(number) = self.last_backend {
            move_cursors(draft, |last| last.backend = number);
        }
    }
}

/// Takes back what ended tasks hold, where every ready node knows that they ended.
fn release_ended(draft: &mut Draft<'_>, settled: u64) {
    let ended = draft.committed().tasks().filter(|task| {
        task.state().is_terminal() && !task.attachments.is_empty() && task.version() <= settled
    });
    let ended: Vec<_> = ended.map(|task| task.id.clone()).collect();
    for id in ended {
        if !draft.has_room() {
            return;
        }
        draft.edit_task(&id, |task| task.attachments.clear());
    }
}

/// The first free number after `last`, around from `most` to `least`.
fn next_free(last: u32, least: u32, most: u32, free: impl Fn(u32) -> bool) -> Option<u32> {
    let after = if last < most { (last + 1).max(least) } else { least };
    (after..=most).chain(least..after).find(|number| free(*number))
}

fn cursors(store: &Store) -> Cursors {
    store.cluster().and_then(|cluster| cluster.last).unwrap_or_default()
}

fn move_cursors(draft: &mut Draft<'_>, edit: impl FnOnce(&mut Cursors)) {
    let Some(cluster) = draft.cluster() else { return };
    let mut cluster = (**cluster).clone();
    edit(cluster.last.get_or_insert_default());
    draft.put(cluster);
}

/// A number for a new node.
pub(crate) fn number_node(draft: &mut Draft<'_>) -> Result<u32, Refusal> {
    let free = |number| draft.holder(&Claim::NodeNumber(number)).is_none();
    let number = next_free(cursors(draft).node, 1, NODES_MAX, free)
        .ok_or(Refusal::Full { what: "nodes", most: NODES_MAX })?;
    move_cursors(draft, |last| last.node = number);
    Ok(number)
}

/// An id for a new manager, never given before.
pub(crate) fn raft_id(draft: &mut Draft<'_>) -> u64 {
    let id = cursors(draft).raft_id + 1;
    move_cursors(draft, |last| last.raft_id = id);
    id
}

/// A number for a new service.
pub(crate) fn number_service(draft: &mut Draft<'_>) -> Result<u32, Refusal> {
    let free = |number| draft.holder(&Claim::ServiceNumber(number)).is_none();
    let number = next_free(cursors(draft).service, 1, NUMBERS_MAX, free)
        .ok_or(Refusal::Full { what: "services", most: NUMBERS_MAX })?;
    move_cursors(draft, |last| last.service = number);
    Ok(number)
}

/// Fills in the published ports of a service's wishes.
///
/// * `id` - the service; what it holds itself is free to it.
/// * `given` - the ports it has: a wish for any port keeps the one that it got.
///
/// A port of a service that is being removed is free.
pub(crate) fn choose_ports(
    store: &Store,
    id: &str,
    wishes: &[PortConfig],
    given: &[PortConfig],
) -> Result<Vec<PortConfig>, Refusal> {
    let owner = |port: &PortConfig| {
        let holder = store.holder(&Claim::Port(port.protocol, port.published_port))?;
        let service = store.service(holder)?;
        (holder != id && !service.pending_delete).then_some(service)
    };
    let mut ports: Vec<PortConfig> = wishes.to_vec();
    for port in ports.iter().filter(|port| port.published_port != 0) {
        if let Some((what, node)) = reserved(store, port) {
            return Err(Refusal::PortReserved {
                port: port.published_port,
                protocol: port.protocol().word(),
                what,
                node: node.hostname().to_owned(),
            });
        }
        if let Some(service) = owner(port) {
            return Err(Refusal::PortTaken {
                port: port.published_port,
                service: service.name().to_owned(),
                id: service.id.clone(),
            });
        }
    }
    for index in 0..ports.len() {
        let mut port = ports[index];
        if port.published_port != 0 {
            continue;
        }
        let free = |candidate: &PortConfig| {
            let same = |other: &PortConfig| {
                (other.protocol, other.published_port)
                    == (candidate.protocol, candidate.published_port)
            };
            let own = reserved(store, candidate).is_some();
            !own && owner(candidate).is_none() && !ports.iter().any(same)
        };
        let alike = |old: &&PortConfig| {
            (old.protocol, old.target_port) == (port.protocol, port.target_port) && free(old)
        };
        let kept = given.iter().find(alike).map(|old| old.published_port);
        let fresh = || {
            let with = |published_port| PortConfig { published_port, ..port };
            DYNAMIC_PORTS.clone().find(|number| free(&with(*number)))
        };
        port.published_port = kept.or_else(fresh).ok_or_else(|| Refusal::NoPortFree {
            first: *DYNAMIC_PORTS.start(),
            last: *DYNAMIC_PORTS.end(),
            protocol: port.protocol().word(),
        })?;
        ports[index] = port;
    }
    Ok(ports)
}

/// The node that lives on that port itself, and for what. Published, every node's programs would
/// take the cluster's own packets for clients', and nobody could undo it.
fn reserved<'s>(store: &'s Store, port: &PortConfig) -> Option<(&'static str, &'s Node)> {
    store.nodes().find_map(|node| {
        let (what, own) = match port.protocol() {
            Protocol::Tcp => ("manager", node.manager_port()?),
            Protocol::Udp => ("data path", node.data_path_port()),
        };
        (own == port.published_port).then_some((what, &**node))
    })
}

/// Whether a joining node can live beside what is published.
///
/// * `manager` - the TCP port of a manager.
/// * `data_path` - the UDP port of the overlay.
pub(crate) fn check_own_ports(
    store: &Store,
    node_id: &str,
    manager: Option<u32>,
    data_path: u32,
) -> Result<(), Refusal> {
    let manager = manager.map(|port| (Protocol::Tcp, port));
    for (protocol, port) in manager.into_iter().chain([(Protocol::Udp, data_path)]) {
        let holder = store.holder(&Claim::Port(protocol.into(), port));
        if let Some(service) = holder.and_then(|id| store.service(id)) {
            let service = service.name().to_owned();
            return Err(Refusal::PortPublished { port, protocol: protocol.word(), service });
        }
    }
    let other = store.nodes().find(|other| other.id != node_id);
    match other.map(|other| other.data_path_port()) {
        Some(cluster) if cluster != data_path => {
            Err(Refusal::DataPathPort { port: data_path, cluster })
        }
        _ => Ok(()),
    }
}

/// Takes the ports that a service is about to get from services that are being removed.
pub(crate) fn take_over_ports(draft: &mut Draft<'_>, id: &str, ports: &[PortConfig]) {
    for port in ports {
        let claim = Claim::Port(port.protocol, port.published_port);
        let Some(holder) = draft.holder(&claim).filter(|holder| *holder != id) else { continue };
        let Some(service) = draft.service(holder) else { continue };
        let mut service = Service::clone(service);
        service.ports.retain(|held| {
            (held.protocol, held.published_port) != (port.protocol, port.published_port)
        });
        draft.put(service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(last: u32, taken: &[u32], expected: Option<u32>) {
        assert_eq!(next_free(last, 1, 5, |number| !taken.contains(&number)), expected);
    }

    #[test]
    fn numbers_go_on_after_the_last_one_and_around() {
        check(0, &[], Some(1));
        check(2, &[], Some(3));
        check(2, &[3, 4], Some(5));
        check(5, &[], Some(1));
        check(5, &[1, 2, 3, 4], Some(5));
        check(7, &[], Some(1));
        check(4, &[5, 1, 2], Some(3));
        check(3, &[1, 2, 3, 4, 5], None);
    }
}
