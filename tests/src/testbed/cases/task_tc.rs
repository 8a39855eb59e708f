//! TC at a task's veth.

use shoal_datapath::abi::VNI_RETURN;
use shoal_datapath::packet::Protocol;
use shoal_datapath::{Reason, Verdict};

use super::super::{Case, Hook, packet::Packet, packet::frame, world::*};

/// From the task to the client.
fn from_task() -> Packet {
    frame(GATEWAY_MAC, TASK_MAC).ipv4(TASK, CLIENT)
}

/// The same, as if a frontend had sent it.
fn from_frontend(address: std::net::Ipv4Addr) -> Packet {
    frame(GATEWAY_MAC, TASK_MAC).ipv4(address, CLIENT)
}

fn dropped(name: &'static str, packet: &Packet, reason: Reason) -> Case {
    Case::new(Hook::TaskTc, name, packet)
        .when(|world| world.flows.extend([flow(Protocol::Tcp, 90, THERE, 9090, 2)]))
        .is(Verdict::Drop, reason)
}

fn tunneled(name: &'static str, packet: &Packet) -> Case {
    Case::new(Hook::TaskTc, name, packet)
        .is(Verdict::Redirect(VXLAN), Reason::TaskTunneled)
        .leaves_through(VNI_RETURN, THERE)
}

#[allow(clippy::too_many_lines, reason = "a table, one entry per case")]
pub fn cases() -> Vec<Case> {
    let reply = from_task().tcp(90, 40_000).payload(b"200 OK");
    let thief = std::net::Ipv4Addr::new(10, 0, 0, 77);
    vec![
        tunneled("a reply goes back through its ingress node", &reply)
            .when(|world| world.flows.extend([flow(Protocol::Tcp, 90, THERE, 9090, 2)]))
            .becomes(&from_frontend(THERE).tcp(9090, 40_000).payload(b"200 OK")),
        tunneled(
            "a datagram's reply goes back through its ingress node",
            &from_task().udp(53, 40_000).payload(b"answer"),
        )
        .when(|world| world.flows.extend([flow(Protocol::Udp, 53, THERE, 9053, 2)]))
        .becomes(&from_frontend(THERE).udp(9053, 40_000).payload(b"answer")),
        tunneled(
            "a reply's UDP checksum of zero stays zero",
            &from_task().udp_without_checksum(53, 40_000).payload(b"answer"),
        )
        .when(|world| world.flows.extend([flow(Protocol::Udp, 53, THERE, 9053, 2)]))
        .becomes(&from_frontend(THERE).udp_without_checksum(9053, 40_000).payload(b"answer")),
        Case::new(Hook::TaskTc, "a reply leaves straight where its client came in", &reply)
            .when(|world| world.flows.extend([flow(Protocol::Tcp, 90, HERE, 9090, 1)]))
            .is(Verdict::Neighbour(UPLINK), Reason::TaskReplied)
            .becomes(&from_frontend(HERE).tcp(9090, 40_000).payload(b"200 OK")),
        dropped(
            "ARP is nobody's to answer",
            &frame([0xff; 6], TASK_MAC).ethertype(0x0806).payload(&[1; 28]),
            Reason::TaskArp,
        ),
        dropped(
            "what answers no flow is dropped",
            &from_task().tcp(90, 40_001),
            Reason::TaskNoFlow,
        ),
        dropped(
            "a datagram does not answer TCP's flow",
            &from_task().udp(90, 40_000),
            Reason::TaskNoFlow,
        ),
        dropped(
            "IPv6 is dropped",
            &frame([0x33; 6], TASK_MAC).ethertype(0x86dd).payload(&[0x60; 40]),
            Reason::TaskNotIp,
        ),
        dropped(
            "a foreign source address is dropped",
            &frame(GATEWAY_MAC, TASK_MAC).ipv4(thief, CLIENT).tcp(90, 40_000),
            Reason::TaskSpoofed,
        ),
        dropped(
            "a frontend's address is not the task's to use",
            &frame(GATEWAY_MAC, TASK_MAC).ipv4(HERE, CLIENT).tcp(9090, 40_000),
            Reason::TaskSpoofed,
        ),
        dropped(
            "a foreign source MAC is dropped",
            &reply.clone().between(GATEWAY_MAC, REMOTE_MAC),
            Reason::TaskSpoofed,
        ),
        dropped("another task's interface is dropped", &reply, Reason::TaskSpoofed).when(|world| {
            world.endpoints.get_mut(&TASK_MAC).expect("the task").ifindex = INTERFACE + 1;
        }),
        dropped("a task speaks into no VLAN", &reply, Reason::TaskSpoofed).tagged(100),
        dropped("nor with a priority", &reply, Reason::TaskSpoofed).tagged(0),
        dropped(
            "a fragment from a task is dropped",
            &reply.clone().fragment(0x2000),
            Reason::TaskMalformed,
        ),
        dropped(
            "ICMP from a task is dropped",
            &from_task().payload(&[8; 16]),
            Reason::TaskMalformed,
        ),
        dropped("an ingress node that is gone drops the reply", &reply, Reason::TaskNoNode)
            .when(|world| assert!(world.nodes.remove(&2).is_some())),
        dropped("a reply before the uplink is known stays untouched", &reply, Reason::NoConfig)
            .when(|world| world.config.uplink = 0),
        dropped("a reply before the configuration stays untouched", &reply, Reason::NoConfig)
            .when(|world| world.config = Default::default()),
    ]
}
