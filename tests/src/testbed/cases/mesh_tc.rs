//! TC at the VXLAN device.

use std::net::Ipv4Addr;

use shoal_datapath::abi::{NO_ALTERNATE, VNI_INGRESS, VNI_RETURN};
use shoal_datapath::packet::Protocol;
use shoal_datapath::{Reason, Verdict};

use super::super::{Case, Hook, packet::Packet, packet::frame, world::*};

/// A client's packet to node 2, which sent it here.
fn inner() -> Packet {
    frame(TASK_MAC, NO_ALTERNATE).ipv4(CLIENT, THERE)
}

/// What reaches the task.
fn at_task() -> Packet {
    frame(TASK_MAC, GATEWAY_MAC).ipv4(CLIENT, TASK)
}

/// A reply of a remote task to a client who asked this node.
fn reply() -> Packet {
    frame(GATEWAY_MAC, REMOTE_MAC).ipv4(HERE, CLIENT).tcp(8080, 40_000).payload(b"200 OK")
}

fn delivered(name: &'static str, packet: &Packet) -> Case {
    Case::new(Hook::MeshTc, name, packet)
        .through(VNI_INGRESS, THERE)
        .is(Verdict::Peer(INTERFACE), Reason::MeshDelivered)
}

fn dropped(name: &'static str, packet: &Packet, vni: u32, reason: Reason) -> Case {
    Case::new(Hook::MeshTc, name, packet).through(vni, THERE).is(Verdict::Drop, reason)
}

fn returned(name: &'static str, packet: &Packet) -> Case {
    Case::new(Hook::MeshTc, name, packet)
        .through(VNI_RETURN, THERE)
        .is(Verdict::Neighbour(UPLINK), Reason::MeshReturned)
}

#[allow(clippy::too_many_lines, reason = "a table, one entry per case")]
pub fn cases() -> Vec<Case> {
    let tcp = inner().tcp(40_000, 9090).payload(b"GET /");
    let udp = inner().udp(40_000, 9053).payload(b"question");
    let tcp_flow = flow(Protocol::Tcp, 90, THERE, 9090, 2);
    let stranger_task = [0x02, 0x42, 10, 0, 0, 99];
    let own = Ipv4Addr::new(10, 88, 0, 1);
    vec![
        delivered("a request in a tunnel reaches its task", &tcp)
            .becomes(&at_task().tcp(40_000, 90).payload(b"GET /"))
            .remembers(tcp_flow)
            .counts(Reason::FlowNew),
        delivered("a datagram in a tunnel reaches its task", &udp)
            .becomes(&at_task().udp(40_000, 53).payload(b"question"))
            .remembers(flow(Protocol::Udp, 53, THERE, 9053, 2))
            .counts(Reason::FlowNew),
        delivered(
            "a UDP checksum of zero stays zero out of a tunnel",
            &inner().udp_without_checksum(40_000, 9053).payload(b"question"),
        )
        .becomes(&at_task().udp_without_checksum(40_000, 53).payload(b"question"))
        .remembers(flow(Protocol::Udp, 53, THERE, 9053, 2))
        .counts(Reason::FlowNew),
        delivered("a known flow in a tunnel is not written again", &tcp)
            .when(|world| world.flows.extend([tcp_flow]))
            .becomes(&at_task().tcp(40_000, 90).payload(b"GET /")),
        delivered("a flow follows its client to another ingress node", &tcp)
            .when(|world| world.flows.extend([flow(Protocol::Tcp, 90, THERE, 9090, 3)]))
            .becomes(&at_task().tcp(40_000, 90).payload(b"GET /"))
            .remembers(tcp_flow)
            .counts(Reason::FlowMoved),
        delivered("hops left stay as they are out of a tunnel", &tcp.clone().hops(1))
            .becomes(&at_task().hops(1).tcp(40_000, 90).payload(b"GET /"))
            .remembers(tcp_flow)
            .counts(Reason::FlowNew),
        // A client that is this very host, asking node 2 for a task that runs here.
        {
            let asked = frame(TASK_MAC, NO_ALTERNATE).ipv4(own, THERE).tcp(40_000, 9090);
            let (mut key, value) = tcp_flow;
            key.client = shoal_datapath::packet::mapped(own.octets());
            delivered("a client on the task's own host is served like any other", &asked)
                .becomes(&frame(TASK_MAC, GATEWAY_MAC).ipv4(own, TASK).tcp(40_000, 90))
                .remembers((key, value))
                .counts(Reason::FlowNew)
        },
        dropped(
            "a task that is not here drops the request",
            &tcp.clone().between(stranger_task, NO_ALTERNATE),
            VNI_INGRESS,
            Reason::MeshNoEndpoint,
        ),
        dropped(
            "a port that is not published drops the request",
            &inner().tcp(40_000, 9999),
            VNI_INGRESS,
            Reason::MeshNotPublished,
        ),
        dropped(
            "a fragment in a tunnel is dropped",
            &tcp.clone().fragment(0x2000),
            VNI_INGRESS,
            Reason::MeshMalformed,
        ),
        dropped(
            "IP options in a tunnel are dropped",
            &tcp.clone().header_words(7),
            VNI_INGRESS,
            Reason::MeshMalformed,
        ),
        dropped(
            "ICMP in a tunnel is dropped",
            &inner().payload(&[8; 16]),
            VNI_INGRESS,
            Reason::MeshMalformed,
        ),
        dropped(
            "ARP in a tunnel is dropped",
            &frame([0xff; 6], REMOTE_MAC).ethertype(0x0806).payload(&[1; 28]),
            VNI_INGRESS,
            Reason::MeshMalformed,
        ),
        dropped("a request of a VLAN is dropped", &tcp, VNI_INGRESS, Reason::MeshMalformed)
            .tagged(100),
        dropped("a reply of a VLAN is dropped", &reply(), VNI_RETURN, Reason::MeshMalformed)
            .tagged(4095),
        delivered("a priority in a tunnel is no VLAN", &tcp)
            .tagged(0)
            .becomes(&at_task().tcp(40_000, 90).payload(b"GET /"))
            .remembers(tcp_flow)
            .counts(Reason::FlowNew),
        dropped("a network that is not known is dropped", &tcp, 4096, Reason::MeshUnknownVni),
        dropped("the VNI beside ours is not ours", &tcp, VNI_RETURN + 1, Reason::MeshUnknownVni),
        {
            let mut case =
                dropped("a stranger's tunnel is dropped", &tcp, VNI_INGRESS, Reason::MeshStranger);
            case.context.tunnel = Some((VNI_INGRESS, STRANGER));
            case
        },
        {
            let name = "what came in no tunnel is dropped";
            let mut case = dropped(name, &tcp, VNI_INGRESS, Reason::MeshNoTunnel);
            case.context.tunnel = None;
            case
        },
        returned("a reply leaves by the uplink", &reply()),
        returned(
            "a datagram's reply leaves by the uplink",
            &frame(GATEWAY_MAC, REMOTE_MAC).ipv4(HERE, CLIENT).udp(5353, 40_000).payload(b"!"),
        ),
        dropped(
            "a reply with a foreign source stays here",
            &frame(GATEWAY_MAC, REMOTE_MAC).ipv4(STRANGER, CLIENT).tcp(8080, 40_000),
            VNI_RETURN,
            Reason::MeshForeignSource,
        ),
        dropped(
            "a fragment of a reply is dropped",
            &reply().fragment(0x2000),
            VNI_RETURN,
            Reason::MeshMalformed,
        ),
        dropped(
            "a reply before the configuration is dropped",
            &reply(),
            VNI_RETURN,
            Reason::NoConfig,
        )
        .when(|world| world.config = Default::default()),
    ]
}
