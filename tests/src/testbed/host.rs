//! Runs a case on the library: a packet in a vector, tables in collections.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use shoal_datapath::abi::{
    Address, Backend, Config, Counter, Endpoint, EndpointKey, Flow, FlowKey, Frontend, Node, Slot,
};
use shoal_datapath::packet::{Protocol, mapped, unmapped};
use shoal_datapath::{End, Frame, Packet, Reason, Skb, Tables, Tunnel, Verdict};

use super::world::{INTERFACE, World};
use super::{Case, Context, Hook, Outcome};

/// Runs a case.
pub fn run(case: &Case) -> Outcome {
    let tables = Memory::new(&case.world);
    let mut packet = Buffer::new(case);
    let verdict = match case.hook {
        Hook::IngressXdp => shoal_datapath::ingress_xdp(&mut packet, &tables),
        Hook::IngressTc => shoal_datapath::ingress_tc(&mut packet, &tables),
        Hook::MeshTc => shoal_datapath::mesh_tc(&mut packet, &tables),
        Hook::TaskTc => shoal_datapath::task_tc(&mut packet, &tables),
    };
    // Only the kernel's stack behind the VXLAN device would refuse the task's frame.
    assert_eq!(
        packet.claimed,
        case.hook == Hook::MeshTc && matches!(verdict, Verdict::Peer(_)),
        "{}: a frame out of a tunnel is claimed for the task, and no other",
        case.name
    );
    let redirected = matches!(verdict, Verdict::Redirect(_));
    let tunnel = packet.leaves.filter(|_| redirected);
    Outcome {
        verdict,
        packet: packet.bytes,
        tunnel: tunnel.map(|t| (t.vni, Ipv4Addr::from(unmapped(&t.remote)))),
        reasons: tables.reasons.into_inner(),
        services: tables.services.into_inner(),
        flows: tables.flows.into_inner().into_iter().map(|(key, flow)| (key, *flow)).collect(),
    }
}

/// Bytes in the first part of a packet of several pages, in XDP's test runs on x86.
pub const FIRST_PART: u32 = 3520;

/// A packet in memory, in whatever hook.
struct Buffer {
    bytes: Vec<u8>,
    hook: Hook,
    context: Context,
    claimed: bool,
    leaves: Option<Tunnel>,
}

impl Buffer {
    fn new(case: &Case) -> Self {
        let Case { hook, context, .. } = *case;
        Self { bytes: case.packet.clone(), hook, context, claimed: false, leaves: None }
    }

    /// Replaces words under a checksum the way that the kernel does: on the inverted sum, with
    /// one exception for UDP.
    fn replace_sum(&mut self, protocol: Protocol, from: u32, to: u32) -> bool {
        let at = protocol.checksum();
        let Some(field) = self.bytes.get_mut(at..at + 2) else {
            return false;
        };
        let old = u16::from_be_bytes([field[0], field[1]]);
        if protocol == Protocol::Udp && old == 0 {
            return true;
        }
        let mut sum = u64::from(!u32::from(old)) + u64::from(!from) + u64::from(to);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let new = match !u16::try_from(sum).expect("folded") {
            0 if protocol == Protocol::Udp => 0xffff,
            new => new,
        };
        field.copy_from_slice(&new.to_be_bytes());
        true
    }
}

impl Packet for Buffer {
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes.first_chunk()
    }

    fn head_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.bytes.first_chunk_mut()
    }

    fn holds(&self, bytes: u32) -> bool {
        self.bytes.len() >= bytes as usize
    }

    fn length(&self) -> u32 {
        let all = u32::try_from(self.bytes.len()).expect("a packet's length");
        if self.hook == Hook::IngressXdp { all.min(FIRST_PART) } else { all }
    }

    fn interface(&self) -> u32 {
        INTERFACE
    }
}

impl Frame for Buffer {
    fn grow(&mut self, bytes: u32) -> bool {
        if self.context.no_headroom {
            return false;
        }
        let room = vec![0xa5; bytes as usize];
        self.bytes.splice(0..0, room);
        true
    }
}

impl Skb for Buffer {
    fn segments(&self) -> u32 {
        self.context.segments.max(1)
    }

    fn is_for_this_host(&self) -> bool {
        !self.context.other_host
    }

    fn vlan(&self) -> Option<u16> {
        self.context.vlan
    }

    fn claim(&mut self) {
        self.claimed = true;
    }

    fn tunnel(&self) -> Option<Tunnel> {
        let (vni, from) = self.context.tunnel?;
        Some(Tunnel { remote: mapped(from.octets()), vni })
    }

    fn set_tunnel(&mut self, tunnel: &Tunnel, _local: &Address) -> bool {
        self.leaves = Some(*tunnel);
        true
    }

    fn replace_address_sum(&mut self, protocol: Protocol, from: u32, to: u32) -> bool {
        self.replace_sum(protocol, from, to)
    }

    fn replace_port_sum(&mut self, protocol: Protocol, from: u32, to: u32) -> bool {
        self.replace_sum(protocol, from, to)
    }
}

/// What an array holds where nothing was written.
const NO_FRONTEND: Frontend = Frontend { service: 0, target_port: 0, flags: 0 };
const NO_BACKEND: Backend = Backend { address: [0; 16], mac: [0; 6], node: 0 };
const NO_NODE: Node =
    Node { address: [0; 16], next_hop: [0; 6], source: [0; 6], ifindex: 0, mtu: 0 };

/// Tables in memory. As in the kernel, an array has an entry, of zeros, where nothing was written.
///
/// Flows are leaked, since the trait hands out references and a packet may add one meanwhile; a
/// case has a few.
struct Memory<'w> {
    world: &'w World,
    flows: RefCell<BTreeMap<FlowKey, &'static Flow>>,
    reasons: RefCell<BTreeMap<Reason, Counter>>,
    services: RefCell<BTreeMap<u16, Counter>>,
}

impl<'w> Memory<'w> {
    fn new(world: &'w World) -> Self {
        let leak = |(key, flow): (&FlowKey, &Flow)| (*key, &*Box::leak(Box::new(*flow)));
        Self {
            world,
            flows: RefCell::new(world.flows.iter().map(leak).collect()),
            reasons: RefCell::default(),
            services: RefCell::default(),
        }
    }
}

impl Tables for Memory<'_> {
    fn config(&self) -> Option<&Config> {
        Some(&self.world.config)
    }

    fn frontend(&self, index: u32) -> Option<&Frontend> {
        let protocol = if index >> 16 == 0 { Protocol::Tcp } else { Protocol::Udp };
        let port = u16::try_from(index & 0xffff).expect("masked");
        Some(self.world.frontends.get(&(protocol, port)).unwrap_or(&NO_FRONTEND))
    }

    fn serves(&self, address: &Address) -> bool {
        self.world.addresses.contains(&Ipv4Addr::from(unmapped(address)))
    }

    fn slot(&self, service: u16, index: usize) -> Option<Slot> {
        self.world.rings.get(&service).map(|ring| ring[index])
    }

    fn backend(&self, number: u16) -> Option<&Backend> {
        Some(self.world.backends.get(&number).unwrap_or(&NO_BACKEND))
    }

    fn node(&self, number: u16) -> Option<&Node> {
        Some(self.world.nodes.get(&number).unwrap_or(&NO_NODE))
    }

    fn node_number(&self, address: &Address) -> Option<u32> {
        self.world.node_numbers.get(address).copied()
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.world.endpoints.get(&key.mac)
    }

    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.borrow().get(key).copied()
    }

    fn remember(&self, key: &FlowKey, flow: &Flow) -> bool {
        self.flows.borrow_mut().insert(*key, Box::leak(Box::new(*flow)));
        true
    }

    fn end(&self, key: &FlowKey, end: End, how: u8) {
        if let Some(flow) = self.flows.borrow_mut().get_mut(key) {
            let ended = match end {
                End::Client => Flow { client_end: how, ..**flow },
                End::Task => Flow { task_end: how, ..**flow },
            };
            *flow = Box::leak(Box::new(ended));
        }
    }

    fn count(&self, reason: Reason, add: Counter) {
        increase(self.reasons.borrow_mut().entry(reason).or_default(), add);
    }

    fn count_service(&self, service: u16, add: Counter) {
        increase(self.services.borrow_mut().entry(service).or_default(), add);
    }
}

fn increase(counter: &mut Counter, add: Counter) {
    counter.packets += add.packets;
    counter.bytes += add.bytes;
}
