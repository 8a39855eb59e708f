//! The bytes that kernel and user share: map keys, map values and their fixed sizes.
//!
//! Everything here is `repr(C)`, has no implicit padding and has its size asserted at compile
//! time. Addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`. A field is in host
//! order unless its doc says otherwise. What this module does not hold: any decision.
//!
//! `tidy` keeps a hash of this file beside [`ABI_VERSION`]: whoever edits one looks at the other.

/// Grows with every change to this file; kept in [`Config::abi`] so that a daemon recognises the
/// maps of another release.
pub const ABI_VERSION: u32 = 3;

/// Slots of a ring. A prime, over 100 times the backends of a big service, so that shares differ
/// by less than 1 % (Eisenbud et al., "Maglev", NSDI 2016, section 5.3) and a ring stays 64 KiB.
pub const RING_SIZE: usize = 16_381;

/// Frontends by protocol and port: `Protocol::index() << 16 | port`.
pub const FRONTENDS_MAX: u32 = 2 << 16;
/// Services by number; number 0 means "none".
pub const SERVICES_MAX: u32 = 1 << 16;
/// Backends by number; number 0 means "none". A ring's slot names one in 16 bits.
pub const BACKENDS_MAX: u32 = 1 << 16;
/// Nodes by number; number 0 means "none".
pub const NODES_MAX: u32 = 4_096;
/// Local tasks: far over what one host runs, small enough to preallocate.
pub const ENDPOINTS_MAX: u32 = 4_096;
/// The node's own addresses that serve frontends.
pub const ADDRESSES_MAX: u32 = 256;
/// Counters by [`Reason`](crate::Reason), with room for more of them.
pub const COUNTERS_MAX: u32 = 64;
/// Default size of the flow table at the backend node; the daemon may choose another.
pub const FLOWS_MAX: u32 = 524_288;

/// VNI of packets on their way from the ingress node to the backend node. Tenant overlays are
/// numbered from 4096 up and stop below this one.
pub const VNI_INGRESS: u32 = 0xF0_0001;
/// VNI of replies on their way back through the ingress node.
pub const VNI_RETURN: u32 = 0xF0_0002;

/// Bytes that the mesh puts before a packet: Ethernet, IPv4, UDP and VXLAN.
pub const OVERHEAD: u32 = 14 + 20 + 8 + 8;
/// Inner source MAC of a packet whose slot has no alternate. Not zero: Linux 6.10 and later drop
/// VXLAN packets whose inner source is no valid unicast address.
pub const NO_ALTERNATE: Mac = *b"\x02SHOAL";

/// Names of the maps in the object, which are their file names where they are pinned, too.
pub mod maps {
    /// Published ports.
    pub const FRONTENDS: &str = "FRONTENDS";
    /// The node's own addresses that serve frontends; the value is 1.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Rings by service.
    pub const RINGS: &str = "RINGS";
    /// Backends by number.
    pub const BACKENDS: &str = "BACKENDS";
    /// Nodes by number.
    pub const NODES: &str = "NODES";
    /// Node numbers by data-path address.
    pub const NODE_NUMBERS: &str = "NODE_NUMBERS";
    /// Local tasks by MAC.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Remembered flows.
    pub const FLOWS: &str = "FLOWS";
    /// The node's configuration.
    pub const CONFIG: &str = "CONFIG";
    /// Counters by reason.
    pub const COUNTERS: &str = "COUNTERS";
    /// Counters by service, at the ingress node.
    pub const SERVICES: &str = "SERVICES";
    /// All of them.
    pub const ALL: [&str; 11] = [
        FRONTENDS,
        ADDRESSES,
        RINGS,
        BACKENDS,
        NODES,
        NODE_NUMBERS,
        ENDPOINTS,
        FLOWS,
        CONFIG,
        COUNTERS,
        SERVICES,
    ];
}

/// Names of the programs in the object.
pub mod programs {
    /// XDP at the uplink.
    pub const INGRESS_XDP: &str = "ingress_xdp";
    /// TC ingress at the uplink.
    pub const INGRESS_TC: &str = "ingress_tc";
    /// TC ingress at the VXLAN device.
    pub const MESH_TC: &str = "mesh_tc";
    /// TC ingress at the host's side of a task's veth.
    pub const TASK_TC: &str = "task_tc";
}

/// An IPv6 address in network order, or an IPv4 one as `::ffff:a.b.c.d`.
pub type Address = [u8; 16];
/// An Ethernet address.
pub type Mac = [u8; 6];

/// `FRONTENDS[protocol index << 16 | port]`: what a published port stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Service number; 0 means that the port is not published.
    pub service: u16,
    /// Port that the task listens on.
    pub target_port: u16,
    /// Bits for later use (affinity, address restriction); zero now.
    pub flags: u32,
}

/// One slot of a ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Backend number; 0 means that the ring is empty.
    pub backend: u16,
    /// The slot's backend before a draining one left, or 0: where a flow may still be known.
    pub alternate: u16,
}

/// `RINGS[service][0]`: a service's Maglev table in one value, so that one update replaces it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Slot `i` serves the flows for whose hash [`slot`](crate::hash::slot) is `i`.
    pub slots: [Slot; RING_SIZE],
}

/// `BACKENDS[number]`: where to send.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The task's address on the ingress network.
    pub address: Address,
    /// The task's MAC: names the task at its node.
    pub mac: Mac,
    /// Number of the node that runs the task; 0 means that this entry is free.
    pub node: u16,
}

/// `NODES[number]`: how to reach a node of the cluster.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The node's data-path address on the underlay; all zero means that this entry is free.
    pub address: Address,
    /// MAC of the next hop towards it.
    pub next_hop: Mac,
    /// MAC of the uplink that leads there.
    pub source: Mac,
    /// Interface index of that uplink, in the daemon's namespace; 0 means that the next hop is
    /// not known yet, so that XDP leaves the packet to TC.
    pub ifindex: u32,
    /// Largest IP packet that the path carries, in bytes.
    pub mtu: u32,
}

/// `ENDPOINTS[mac]`: a task of this node. The key is the task's MAC and two zero bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The task's address on the ingress network.
    pub address: Address,
    /// Index of the host's side of the task's veth.
    pub ifindex: u32,
    /// MAC of the host's side, the task's gateway.
    pub gateway: Mac,
    /// Zero.
    pub pad: [u8; 2],
}

/// Key of `ENDPOINTS`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The task's MAC.
    pub mac: Mac,
    /// Zero.
    pub pad: [u8; 2],
}

/// The flow has not ended at this end.
pub const OPEN: u8 = 0;
/// This end has sent all that it has to send: TCP's FIN.
pub const FINISHED: u8 = 1;
/// This end has broken the flow off: TCP's RST.
pub const RESET: u8 = 2;

/// Key of `FLOWS`: a flow as the task sees it. Aligned, so that programs write it in words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// The client's address.
    pub client: Address,
    /// The task's address.
    pub task: Address,
    /// The port that the task takes for the client's, network order.
    pub client_port: u16,
    /// The task's port, network order.
    pub task_port: u16,
    /// IP protocol number, 6 or 17. A whole word, because for three bytes of padding the compiler
    /// would call a loop.
    pub protocol: u32,
}

/// Value of `FLOWS`: what the client addressed, and the way back to it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The frontend's address: source of the reply.
    pub frontend: Address,
    /// The frontend's port, network order.
    pub frontend_port: u16,
    /// Number of the ingress node; our own number means that the reply leaves here.
    pub node: u16,
    /// The client's own port, network order. The key's is another one where the client uses its
    /// port for two frontends at a time.
    pub client_port: u16,
    /// [`OPEN`], [`FINISHED`] or [`RESET`] by the client. A byte of its own, because both ends
    /// may be written at once.
    pub client_end: u8,
    /// The same by the task.
    pub task_end: u8,
}

/// `CONFIG[0]`: what one node's programs must know about themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`ABI_VERSION`] of the daemon that made the maps.
    pub abi: u32,
    /// Interface index of the uplink.
    pub uplink: u32,
    /// Interface index of the VXLAN device.
    pub vxlan: u32,
    /// UDP port of the underlay's VXLAN, host order.
    pub vxlan_port: u16,
    /// This node's own number.
    pub node: u16,
    /// This node's data-path address: the outer source.
    pub address: Address,
}

/// One counter; per CPU in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets, each segment of a GSO packet as one.
    pub packets: u64,
    /// Bytes from the inner Ethernet header on.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<Frontend>() == 8);
    assert!(size_of::<Slot>() == 4);
    assert!(size_of::<Ring>() == 4 * RING_SIZE);
    assert!(size_of::<Backend>() == 24);
    assert!(size_of::<Node>() == 36);
    assert!(size_of::<Endpoint>() == 28);
    assert!(size_of::<EndpointKey>() == 8);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 24);
    assert!(size_of::<Config>() == 32);
    assert!(size_of::<Counter>() == 16);
};
