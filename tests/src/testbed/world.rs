//! The tables of the cases: a small cluster as node 1 sees it.
//!
//! Node 1 (`HERE`) has the uplink, the VXLAN device and the task `TASK`; node 2 (`THERE`) and node
//! 3 are remote. Service 5 is published at 8080/tcp and 5353/udp, service 6, whose task is local,
//! at 9090/tcp and 9053/udp, service 7 has a ring without backends and service 8 no ring at all.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use shoal_datapath::abi::{
    ABI_VERSION, Address, Backend, Config, Endpoint, Flow, FlowKey, Frontend, Mac, Node, RING_SIZE,
    Slot,
};
use shoal_datapath::packet::{Protocol, mapped};

/// The client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 100);
/// This node.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// Another node.
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
/// The local task.
pub const TASK: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
/// No node's address.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 66);

/// MAC of the uplink.
pub const UPLINK_MAC: Mac = [0x02, 0, 0, 0x88, 0, 1];
/// MAC of the router, or whoever hands us the packet.
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0x88, 0, 0xfe];
/// MAC of the next hop towards node 2.
pub const THERE_MAC: Mac = [0x02, 0, 0, 0x88, 0, 2];
/// MAC of the local task.
pub const TASK_MAC: Mac = [0x02, 0x42, 10, 0, 0, 3];
/// MAC of the local task's gateway.
pub const GATEWAY_MAC: Mac = [0x02, 0x42, 10, 0, 0, 1];
/// MAC of the remote task.
pub const REMOTE_MAC: Mac = [0x02, 0x42, 10, 0, 0, 7];
/// MAC of the alternate's task.
pub const ALTERNATE_MAC: Mac = [0x02, 0x42, 10, 0, 0, 9];

/// Index of the interface that a test packet comes in by: the kernel takes the loopback.
pub const INTERFACE: u32 = 1;
/// Index of the uplink.
pub const UPLINK: u32 = 66;
/// Index of the VXLAN device.
pub const VXLAN: u32 = 77;
/// The underlay's VXLAN port.
pub const VXLAN_PORT: u16 = 4789;

/// Number of the backend on node 2.
pub const REMOTE_BACKEND: u16 = 11;
/// Number of the backend on this node.
pub const LOCAL_BACKEND: u16 = 12;
/// Number of the backend that is an alternate.
pub const ALTERNATE_BACKEND: u16 = 13;

/// Service of a remote task.
pub const REMOTE_SERVICE: u16 = 5;
/// Service of a local task.
pub const LOCAL_SERVICE: u16 = 6;
/// Service whose ring has no backend.
pub const EMPTY_SERVICE: u16 = 7;
/// Service that has no ring.
pub const RINGLESS_SERVICE: u16 = 8;

/// What all tables hold.
#[derive(Clone, Debug)]
pub struct World {
    /// This node's configuration.
    pub config: Config,
    /// Published ports.
    pub frontends: BTreeMap<(Protocol, u16), Frontend>,
    /// Addresses that serve frontends.
    pub addresses: Vec<Ipv4Addr>,
    /// Rings by service.
    pub rings: BTreeMap<u16, Vec<Slot>>,
    /// Backends by number.
    pub backends: BTreeMap<u16, Backend>,
    /// Nodes by number.
    pub nodes: BTreeMap<u16, Node>,
    /// Node numbers by address.
    pub node_numbers: BTreeMap<Address, u32>,
    /// Local tasks by MAC.
    pub endpoints: BTreeMap<Mac, Endpoint>,
    /// Remembered flows.
    pub flows: BTreeMap<FlowKey, Flow>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// The cluster of the header.
    pub fn new() -> Self {
        let frontend = |service, target_port| Frontend { service, target_port, flags: 0 };
        let backend = |address: [u8; 4], mac, node| Backend { address: mapped(address), mac, node };
        let node = |address: Ipv4Addr, next_hop, ifindex| Node {
            address: mapped(address.octets()),
            next_hop,
            source: UPLINK_MAC,
            ifindex,
            mtu: 1500,
        };
        let third = Ipv4Addr::new(10, 88, 0, 3);
        let nodes = BTreeMap::from([
            (1, node(HERE, [0; 6], 0)),
            (2, node(THERE, THERE_MAC, INTERFACE)),
            (3, node(third, [0x02, 0, 0, 0x88, 0, 3], INTERFACE)),
        ]);
        let slot = |backend| Slot { backend, alternate: 0 };
        Self {
            config: Config {
                abi: ABI_VERSION,
                uplink: UPLINK,
                vxlan: VXLAN,
                vxlan_port: VXLAN_PORT,
                node: 1,
                address: mapped(HERE.octets()),
            },
            frontends: BTreeMap::from([
                ((Protocol::Tcp, 8080), frontend(REMOTE_SERVICE, 80)),
                ((Protocol::Udp, 5353), frontend(REMOTE_SERVICE, 53)),
                ((Protocol::Tcp, 9090), frontend(LOCAL_SERVICE, 90)),
                ((Protocol::Udp, 9053), frontend(LOCAL_SERVICE, 53)),
                ((Protocol::Tcp, 7070), frontend(EMPTY_SERVICE, 70)),
                ((Protocol::Tcp, 7171), frontend(RINGLESS_SERVICE, 71)),
            ]),
            addresses: vec![HERE],
            rings: BTreeMap::from([
                (REMOTE_SERVICE, vec![slot(REMOTE_BACKEND); RING_SIZE]),
                (LOCAL_SERVICE, vec![slot(LOCAL_BACKEND); RING_SIZE]),
                (EMPTY_SERVICE, vec![slot(0); RING_SIZE]),
            ]),
            backends: BTreeMap::from([
                (REMOTE_BACKEND, backend([10, 0, 0, 7], REMOTE_MAC, 2)),
                (LOCAL_BACKEND, backend(TASK.octets(), TASK_MAC, 1)),
                (ALTERNATE_BACKEND, backend([10, 0, 0, 9], ALTERNATE_MAC, 3)),
            ]),
            node_numbers: nodes.iter().map(|(n, node)| (node.address, u32::from(*n))).collect(),
            nodes,
            endpoints: BTreeMap::from([(
                TASK_MAC,
                Endpoint {
                    address: mapped(TASK.octets()),
                    ifindex: INTERFACE,
                    gateway: GATEWAY_MAC,
                    pad: [0; 2],
                },
            )]),
            flows: BTreeMap::new(),
        }
    }

    /// Tables with nothing in them.
    pub fn empty() -> Self {
        Self {
            config: Config::default(),
            frontends: BTreeMap::new(),
            addresses: Vec::new(),
            rings: BTreeMap::new(),
            backends: BTreeMap::new(),
            nodes: BTreeMap::new(),
            node_numbers: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            flows: BTreeMap::new(),
        }
    }

    /// Gives a service's slots a backend and an alternate.
    pub fn fill(&mut self, service: u16, backend: u16, alternate: u16) {
        self.rings.insert(service, vec![Slot { backend, alternate }; RING_SIZE]);
    }
}

/// A flow from the client's port 40000 to the local task, as the backend node remembers it.
///
/// * `port` - the frontend's.
/// * `node` - the ingress node's number, which asked at `frontend`.
pub fn flow(
    protocol: Protocol,
    task_port: u16,
    frontend: Ipv4Addr,
    port: u16,
    node: u16,
) -> (FlowKey, Flow) {
    let key = FlowKey {
        client: mapped(CLIENT.octets()),
        task: mapped(TASK.octets()),
        client_port: 40_000_u16.to_be(),
        task_port: task_port.to_be(),
        protocol: protocol.number().into(),
    };
    let flow = Flow {
        frontend: mapped(frontend.octets()),
        frontend_port: port.to_be(),
        node,
        client_port: key.client_port,
        ..Flow::default()
    };
    (key, flow)
}
