//! XDP at the uplink.

use shoal_datapath::abi::{NO_ALTERNATE, RING_SIZE, Slot, VNI_INGRESS};
use shoal_datapath::packet::mapped;
use shoal_datapath::{Reason, Verdict, hash};

use super::super::{Case, Hook, host::FIRST_PART, packet::Packet, packet::frame, world::*};
use super::{datagram, from_client, request};

/// What leaves for node 2: the packet between its new MACs, in VXLAN.
fn encapsulated(inner: &Packet, alternate: [u8; 6], service: u16, congestion: u8) -> Packet {
    let hash = hash::hash(&mapped(CLIENT.octets()), 40_000, service);
    frame(THERE_MAC, UPLINK_MAC)
        .ipv4(HERE, THERE)
        .id(0)
        .service(congestion)
        .udp_without_checksum(0xc000 | u16::try_from(hash & 0x3fff).expect("masked"), VXLAN_PORT)
        .vxlan(VNI_INGRESS, &inner.clone().between(REMOTE_MAC, alternate))
}

fn forwarded(name: &'static str, packet: &Packet) -> Case {
    Case::new(Hook::IngressXdp, name, packet)
        .is(Verdict::Transmit, Reason::XdpForwarded)
        .serves(REMOTE_SERVICE)
        .becomes(&encapsulated(packet, NO_ALTERNATE, REMOTE_SERVICE, 0))
}

fn passed(name: &'static str, packet: &Packet, reason: Reason) -> Case {
    Case::new(Hook::IngressXdp, name, packet).is(Verdict::Pass, reason)
}

/// The slot that the test client's hash falls on.
fn slot_of_client() -> usize {
    hash::slot(hash::hash(&mapped(CLIENT.octets()), 40_000, REMOTE_SERVICE))
}

#[allow(clippy::too_many_lines, reason = "a table, one entry per case")]
pub fn cases() -> Vec<Case> {
    let tcp = request(8080);
    let padded = from_client().udp(40_000, 5353).payload(b"?").padded_by(17);
    let largest = from_client().tcp(40_000, 8080).payload(&[7; 1410]);
    let too_big = from_client().tcp(40_000, 8080).payload(&[7; 1411]);
    let jumbo = from_client().tcp(40_000, 8080).payload(&[7; 8000]);
    vec![
        forwarded("a TCP segment for a remote task leaves in VXLAN", &tcp),
        forwarded("a datagram for a remote task leaves in VXLAN", &datagram(5353)),
        forwarded(
            "a UDP checksum of zero stays zero",
            &from_client().udp_without_checksum(40_000, 5353).payload(b"?"),
        ),
        forwarded("an empty datagram is whole", &from_client().udp(40_000, 5353)),
        forwarded("hops left stay as they are", &tcp.clone().hops(1)),
        {
            let marked = tcp.clone().service(0xb3);
            forwarded("congestion bits go into the outer header, the rest does not", &marked)
                .becomes(&encapsulated(&marked, NO_ALTERNATE, REMOTE_SERVICE, 3))
        },
        // The outer lengths are the packet's, so that the far end cuts the padding off.
        {
            let mut case = forwarded("padding stays outside of the outer length", &padded);
            let inner = from_client().udp(40_000, 5353).payload(b"?");
            let mut bytes = encapsulated(&inner, NO_ALTERNATE, REMOTE_SERVICE, 0).bytes();
            bytes.resize(bytes.len() + 17, 0);
            case.expected.packet = bytes;
            case.of_bytes(14 + 20 + 8 + 1)
        },
        forwarded("what fills the path to the last byte still leaves", &largest),
        forwarded("a packet of several pages leaves", &jumbo)
            .when(|world| world.nodes.get_mut(&2).expect("node 2").mtu = 9000),
        forwarded("the slot's alternate is named", &tcp)
            .when(|world| world.fill(REMOTE_SERVICE, REMOTE_BACKEND, ALTERNATE_BACKEND))
            .becomes(&encapsulated(&tcp, ALTERNATE_MAC, REMOTE_SERVICE, 0)),
        forwarded("an alternate that is gone is not named", &tcp)
            .when(|world| world.fill(REMOTE_SERVICE, REMOTE_BACKEND, 99)),
        forwarded("only the slot of the client's hash is asked", &tcp).when(|world| {
            let mut ring = vec![Slot { backend: LOCAL_BACKEND, alternate: 0 }; RING_SIZE];
            ring[slot_of_client()].backend = REMOTE_BACKEND;
            world.rings.insert(REMOTE_SERVICE, ring);
        }),
        passed("the slots beside it do not matter", &tcp, Reason::XdpLocal).when(|world| {
            let mut ring = vec![Slot { backend: REMOTE_BACKEND, alternate: 0 }; RING_SIZE];
            ring[slot_of_client()].backend = LOCAL_BACKEND;
            world.rings.insert(REMOTE_SERVICE, ring);
        }),
        passed("a packet for a local task is left to TC", &request(9090), Reason::XdpLocal),
        passed("a port that is not published is left alone", &request(8081), Reason::XdpForeign),
        passed("TCP's ports are not UDP's", &datagram(8080), Reason::XdpForeign),
        passed(
            "an address that serves no frontend is left alone",
            &frame(UPLINK_MAC, ROUTER_MAC).ipv4(CLIENT, THERE).tcp(40_000, 8080),
            Reason::XdpForeign,
        ),
        passed("a ring without backends is left to TC", &request(7070), Reason::XdpNoBackend),
        passed("a service without a ring is left to TC", &request(7171), Reason::XdpNoBackend),
        passed("a slot that names a free backend is left to TC", &tcp, Reason::XdpNoBackend)
            .when(|world| assert!(world.backends.remove(&REMOTE_BACKEND).is_some())),
        forwarded("an alternate of number 0 is none, whatever its entry holds", &tcp).when(
            |world| {
                let stray = world.backends[&ALTERNATE_BACKEND];
                world.backends.insert(0, stray);
            },
        ),
        passed("one byte too much for the path is left to TC", &too_big, Reason::XdpTooBig),
        passed(
            "a length that would not fit with the headers on is left to TC",
            &from_client().tcp(40_000, 8080).payload(&vec![7; 65_460]),
            Reason::XdpTooBig,
        )
        .when(|world| world.nodes.get_mut(&2).expect("node 2").mtu = 1 << 17)
        .of_bytes(FIRST_PART.into()),
        passed("an unknown next hop is left to TC", &tcp, Reason::XdpNoNextHop)
            .when(|world| world.nodes.get_mut(&2).expect("node 2").ifindex = 0),
        passed("a next hop behind another interface is left to TC", &tcp, Reason::XdpNoNextHop)
            .when(|world| world.nodes.get_mut(&2).expect("node 2").ifindex = UPLINK),
        passed("a node that is not known is left to TC", &tcp, Reason::XdpNoNextHop)
            .when(|world| assert!(world.nodes.remove(&2).is_some())),
        passed(
            "a frame for another host's MAC is left alone",
            &tcp.clone().between(THERE_MAC, ROUTER_MAC),
            Reason::XdpOtherHost,
        ),
        passed("before the configuration is written all passes", &tcp, Reason::NoConfig)
            .when(|world| world.config = Default::default()),
        passed("without room before it a packet is left to TC", &tcp, Reason::XdpNoRoom)
            .without_headroom(),
    ]
}
