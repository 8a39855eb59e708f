//! TC at the uplink.

use shoal_datapath::abi::{NO_ALTERNATE, VNI_INGRESS};
use shoal_datapath::packet::Protocol;
use shoal_datapath::{Reason, Verdict};

use super::super::{Case, Hook, packet::Packet, packet::frame, world::*};
use super::{datagram, from_client, request};

/// What reaches the local task.
fn at_task() -> Packet {
    frame(TASK_MAC, GATEWAY_MAC).ipv4(CLIENT, TASK)
}

fn delivered(name: &'static str, packet: &Packet) -> Case {
    Case::new(Hook::IngressTc, name, packet)
        .is(Verdict::Peer(INTERFACE), Reason::TcDelivered)
        .serves(LOCAL_SERVICE)
}

fn forwarded(name: &'static str, packet: &Packet) -> Case {
    Case::new(Hook::IngressTc, name, packet)
        .is(Verdict::Redirect(VXLAN), Reason::TcForwarded)
        .serves(REMOTE_SERVICE)
        .becomes(&packet.clone().between(REMOTE_MAC, NO_ALTERNATE))
        .leaves_through(VNI_INGRESS, THERE)
}

fn passed(name: &'static str, packet: &Packet, reason: Reason) -> Case {
    Case::new(Hook::IngressTc, name, packet).is(Verdict::Pass, reason)
}

fn dropped(name: &'static str, packet: &Packet, reason: Reason) -> Case {
    Case::new(Hook::IngressTc, name, packet).is(Verdict::Drop, reason)
}

#[allow(clippy::too_many_lines, reason = "a table, one entry per case")]
pub fn cases() -> Vec<Case> {
    let http = b"GET / HTTP/1.1";
    let local_flow = flow(Protocol::Tcp, 90, HERE, 9090, 1);
    let first = request(8080).fragment(0x2000);
    vec![
        delivered("a TCP segment reaches the local task", &request(9090))
            .becomes(&at_task().tcp(40_000, 90).payload(http))
            .remembers(local_flow)
            .counts(Reason::FlowNew),
        delivered("a datagram reaches the local task", &datagram(9053))
            .becomes(&at_task().udp(40_000, 53).payload(b"question"))
            .remembers(flow(Protocol::Udp, 53, HERE, 9053, 1))
            .counts(Reason::FlowNew),
        delivered(
            "a UDP checksum of zero stays zero on the way to the task",
            &from_client().udp_without_checksum(40_000, 9053).payload(b"question"),
        )
        .becomes(&at_task().udp_without_checksum(40_000, 53).payload(b"question"))
        .remembers(flow(Protocol::Udp, 53, HERE, 9053, 1))
        .counts(Reason::FlowNew),
        delivered("a known flow is not written again", &request(9090))
            .when(|world| world.flows.extend([local_flow]))
            .becomes(&at_task().tcp(40_000, 90).payload(http)),
        delivered("a flow that came through another node before is moved", &request(9090))
            .when(|world| world.flows.extend([flow(Protocol::Tcp, 90, THERE, 9090, 2)]))
            .becomes(&at_task().tcp(40_000, 90).payload(http))
            .remembers(local_flow)
            .counts(Reason::FlowMoved),
        {
            let mut case = delivered("each segment counts as a packet", &request(9090))
                .of_segments(3)
                .becomes(&at_task().tcp(40_000, 90).payload(http))
                .remembers(local_flow)
                .counts(Reason::FlowNew);
            let all = case.expected.reasons.values_mut().chain(case.expected.services.values_mut());
            all.for_each(|counter| counter.packets = 3);
            case
        },
        {
            let merged = vec![7; 70_000];
            delivered(
                "segments merged to more than a length can tell reach the local task",
                &from_client().tcp(40_000, 9090).payload(&merged),
            )
            .becomes(&at_task().tcp(40_000, 90).payload(&merged))
            .remembers(local_flow)
            .counts(Reason::FlowNew)
        },
        dropped(
            "a length of zero is one where a length can tell",
            &from_client().tcp(40_000, 9090).payload(&[7; 65_495]).claims_length(0),
            Reason::TcMalformed,
        ),
        forwarded("a packet for a remote task goes to the VXLAN device", &request(8080)),
        forwarded("a datagram for a remote task goes to the VXLAN device", &datagram(5353)),
        forwarded(
            "what is too big for XDP goes to the VXLAN device",
            &from_client().tcp(40_000, 8080).payload(&[7; 1460]),
        ),
        forwarded("the slot's alternate is named here too", &request(8080))
            .when(|world| world.fill(REMOTE_SERVICE, REMOTE_BACKEND, ALTERNATE_BACKEND))
            .becomes(&request(8080).between(REMOTE_MAC, ALTERNATE_MAC)),
        forwarded("an unknown next hop is the kernel's to find", &request(8080))
            .when(|world| world.nodes.get_mut(&2).expect("node 2").ifindex = 0),
        passed("TC leaves a port that is not published alone", &request(22), Reason::TcForeign),
        passed(
            "TC leaves an address that serves no frontend alone",
            &frame(UPLINK_MAC, ROUTER_MAC).ipv4(CLIENT, THERE).tcp(40_000, 9090),
            Reason::TcForeign,
        ),
        passed("TC leaves another host's frame alone", &request(9090), Reason::TcForeign)
            .for_another_host(),
        passed("TC leaves a frame of a VLAN alone", &request(9090), Reason::TcForeign).tagged(100),
        delivered("a priority is no VLAN", &request(9090))
            .tagged(0)
            .becomes(&at_task().tcp(40_000, 90).payload(http))
            .remembers(local_flow)
            .counts(Reason::FlowNew),
        passed(
            "the stack refuses for a ring without backends",
            &request(7070),
            Reason::TcNoBackend,
        ),
        passed(
            "the stack refuses for a service without a ring",
            &request(7171),
            Reason::TcNoBackend,
        ),
        passed("TC before the configuration passes", &request(9090), Reason::NoConfig)
            .when(|world| world.config = Default::default()),
        passed(
            "IP options are the stack's to answer",
            &request(9090).header_words(6),
            Reason::TcOptions,
        ),
        dropped("a first fragment for a published port is dropped", &first, Reason::TcFragment),
        passed(
            "a first fragment for another port is left alone",
            &request(22).fragment(0x2000),
            Reason::TcForeign,
        ),
        passed(
            "a later fragment shows no port and is left alone",
            &request(9090).fragment(0x0010),
            Reason::TcForeign,
        ),
        dropped(
            "a local task that is not here drops the packet",
            &request(9090),
            Reason::TcNoEndpoint,
        )
        .when(|world| world.endpoints.clear()),
        dropped("a node that is not known drops the packet", &request(8080), Reason::TcNoNode)
            .when(|world| assert!(world.nodes.remove(&2).is_some())),
    ]
}
