//! Two flows of one client that only their frontends tell apart, and how flows end.
//!
//! The client's port 40000 is `ELDER`'s: a flow through another ingress node to the same task.

use std::net::Ipv4Addr;

use shoal_datapath::abi::{FINISHED, Flow, FlowKey, NO_ALTERNATE, OPEN, RESET, VNI_INGRESS};
use shoal_datapath::hash::alternate_port;
use shoal_datapath::packet::{ACK, FIN, Protocol, RST, SYN};
use shoal_datapath::{Reason, Verdict};

use super::super::{Case, Hook, packet::Packet, packet::frame, world::*};
use super::from_client;

type Entry = (FlowKey, Flow);

/// Node 3.
const ELDER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);

/// The client's flow through node 3, as both ends left it.
fn elder(client_end: u8, task_end: u8) -> Entry {
    let (key, flow) = flow(Protocol::Tcp, 90, ELDER, 9090, 3);
    (key, Flow { client_end, task_end, ..flow })
}

/// The port that the task sees in place of the client's.
fn alternate(frontend: Ipv4Addr, port: u16) -> u16 {
    alternate_port(40_000, frontend.to_bits(), port)
}

/// The same flow under its alternate.
fn moved_aside((key, flow): Entry) -> Entry {
    let frontend = Ipv4Addr::from_bits(u32::from_be_bytes(
        *flow.frontend.last_chunk().expect("an address has four bytes"),
    ));
    let port = alternate(frontend, u16::from_be(flow.frontend_port));
    (FlowKey { client_port: port.to_be(), ..key }, flow)
}

/// The client's flow through node 2, as both ends left it.
fn ours(client_end: u8, task_end: u8) -> Entry {
    let (key, flow) = flow(Protocol::Tcp, 90, THERE, 9090, 2);
    (key, Flow { client_end, task_end, ..flow })
}

/// Another client port's flow that got the alternate of ours first.
fn squatter(client_end: u8, task_end: u8) -> Entry {
    let (key, flow) = moved_aside(ours(client_end, task_end));
    (key, Flow { client_port: 50_000_u16.to_be(), ..flow })
}

/// From the client through node 2.
fn request(flags: u8) -> Packet {
    request_to(9090, flags)
}

fn request_to(port: u16, flags: u8) -> Packet {
    let payload: &[u8] = if flags & SYN != 0 { b"" } else { b"GET /" };
    frame(TASK_MAC, NO_ALTERNATE).ipv4(CLIENT, THERE).tcp_with(flags, 40_000, port).payload(payload)
}

/// The same at the task, from this client port.
fn at_task(flags: u8, port: u16) -> Packet {
    request(flags).between(TASK_MAC, GATEWAY_MAC).ipv4(CLIENT, TASK).tcp_with(flags, port, 90)
}

fn with(name: &'static str, flows: &[Entry], packet: &Packet) -> Case {
    Case::new(Hook::MeshTc, name, packet)
        .when(|world| {
            world.flows.extend(flows.iter().copied());
            let second = world.frontends[&(Protocol::Tcp, 9090)];
            world.frontends.insert((Protocol::Tcp, 9091), second);
        })
        .through(VNI_INGRESS, THERE)
}

fn delivered(name: &'static str, flows: &[Entry], flags: u8, port: u16) -> Case {
    with(name, flows, &request(flags))
        .is(Verdict::Peer(INTERFACE), Reason::MeshDelivered)
        .becomes(&at_task(flags, port))
}

fn refused(name: &'static str, flows: &[Entry]) -> Case {
    with(name, flows, &request(SYN)).is(Verdict::Drop, Reason::FlowClash)
}

fn replied(name: &'static str, flow: Entry, flags: u8) -> Case {
    let (key, value) = flow;
    let reply = frame(GATEWAY_MAC, TASK_MAC).payload(b"200 OK");
    let from = reply.clone().ipv4(TASK, CLIENT);
    Case::new(Hook::TaskTc, name, &from.tcp_with(flags, 90, u16::from_be(key.client_port)))
        .when(|world| world.flows.extend([(key, value)]))
        .is(Verdict::Redirect(VXLAN), Reason::TaskTunneled)
        .leaves_through(shoal_datapath::abi::VNI_RETURN, THERE)
        .becomes(&reply.ipv4(THERE, CLIENT).tcp_with(flags, 9090, 40_000))
}

#[allow(clippy::too_many_lines, reason = "a table, one entry per case")]
pub fn cases() -> Vec<Case> {
    let live = elder(OPEN, OPEN);
    let own = ours(OPEN, OPEN);
    let aside = moved_aside(own);
    let other_port = alternate(THERE, 9090);
    let mut cases = vec![
        delivered("a new connection from a taken port gets another", &[live], SYN, other_port)
            .remembers(aside)
            .counts(Reason::FlowAlternate),
        delivered("its segments go the same way", &[live, aside], ACK, other_port),
        delivered("its repeated beginning finds its place", &[live, aside], SYN, other_port),
        delivered("it stays aside when the elder is forgotten", &[aside], ACK, other_port),
        delivered("nor does it come back by beginning", &[aside], SYN, other_port),
        delivered(
            "it is left aside when the elder has ended",
            &[elder(RESET, OPEN), aside],
            ACK,
            other_port,
        ),
        delivered("the elder keeps the client's own port", &[own, moved_aside(live)], ACK, 40_000),
        delivered(
            "a connection that the client has finished goes on",
            &[elder(FINISHED, OPEN)],
            SYN,
            other_port,
        )
        .remembers(aside)
        .counts(Reason::FlowAlternate),
        delivered(
            "a connection that the task has finished goes on",
            &[elder(OPEN, FINISHED)],
            SYN,
            other_port,
        )
        .remembers(aside)
        .counts(Reason::FlowAlternate),
        delivered(
            "a port is free once both ends have finished",
            &[elder(FINISHED, FINISHED)],
            SYN,
            40_000,
        )
        .remembers(own)
        .counts(Reason::FlowMoved),
        delivered("a port is free once the task refused", &[elder(OPEN, RESET)], SYN, 40_000)
            .remembers(own)
            .counts(Reason::FlowMoved),
        delivered("a port is free once the client broke off", &[elder(RESET, OPEN)], SYN, 40_000)
            .remembers(own)
            .counts(Reason::FlowMoved),
        refused("with both ports taken a connection is refused", &[live, squatter(OPEN, OPEN)]),
        refused("an alternate half closed is taken", &[live, squatter(FINISHED, OPEN)]),
        delivered(
            "an alternate whose flow has ended is free",
            &[live, squatter(FINISHED, FINISHED)],
            SYN,
            other_port,
        )
        .remembers(aside)
        .counts(Reason::FlowAlternate),
        delivered("a segment within a connection takes the port over", &[live], ACK, 40_000)
            .remembers(own)
            .counts(Reason::FlowMoved),
        delivered("an answer to a beginning is none itself", &[live], SYN | ACK, 40_000)
            .remembers(own)
            .counts(Reason::FlowMoved),
        with("another published port is another frontend", &[own], &request_to(9091, SYN))
            .is(Verdict::Peer(INTERFACE), Reason::MeshDelivered)
            .becomes(&at_task(SYN, alternate(THERE, 9091)))
            .remembers({
                let (key, flow) = own;
                moved_aside((key, Flow { frontend_port: 9091_u16.to_be(), ..flow }))
            })
            .counts(Reason::FlowAlternate),
        {
            let udp = |address, node| flow(Protocol::Udp, 53, address, 9053, node);
            let asked = frame(TASK_MAC, NO_ALTERNATE).ipv4(CLIENT, THERE).udp(40_000, 9053);
            with("a datagram takes the port over", &[udp(ELDER, 3)], &asked)
                .is(Verdict::Peer(INTERFACE), Reason::MeshDelivered)
                .becomes(&frame(TASK_MAC, GATEWAY_MAC).ipv4(CLIENT, TASK).udp(40_000, 53))
                .remembers(udp(THERE, 2))
                .counts(Reason::FlowMoved)
        },
        // What would make a task's answer a packet of the mesh.
        with(
            "a datagram from the tunnels' port is refused",
            &[],
            &frame(TASK_MAC, NO_ALTERNATE).ipv4(CLIENT, THERE).udp(VXLAN_PORT, 9053),
        )
        .is(Verdict::Drop, Reason::FlowReflected),
        Case::new(
            Hook::IngressTc,
            "a datagram from the tunnels' port is refused at the ingress node",
            &from_client().udp(VXLAN_PORT, 9053),
        )
        .is(Verdict::Drop, Reason::FlowReflected),
        {
            let (mut key, mut flow) = own;
            key.client_port = VXLAN_PORT.to_be();
            flow.client_port = key.client_port;
            let asked = |mac, source| frame(TASK_MAC, mac).ipv4(CLIENT, source);
            with(
                "TCP may come from that port",
                &[],
                &asked(NO_ALTERNATE, THERE).tcp_with(SYN, VXLAN_PORT, 9090),
            )
            .is(Verdict::Peer(INTERFACE), Reason::MeshDelivered)
            .becomes(&asked(GATEWAY_MAC, TASK).tcp_with(SYN, VXLAN_PORT, 90))
            .remembers((key, flow))
            .counts(Reason::FlowNew)
        },
        // How flows end.
        delivered("the client's end is noted", &[own], FIN | ACK, 40_000)
            .remembers(ours(FINISHED, OPEN)),
        delivered("the client's end is noted aside, too", &[live, aside], FIN | ACK, other_port)
            .remembers(moved_aside(ours(FINISHED, OPEN))),
        delivered("the other end stays noted", &[ours(OPEN, FINISHED)], FIN | ACK, 40_000)
            .remembers(ours(FINISHED, FINISHED)),
        delivered("a reset is noted over an end", &[ours(FINISHED, OPEN)], RST, 40_000)
            .remembers(ours(RESET, OPEN)),
        delivered("an end does not take a reset back", &[ours(RESET, OPEN)], FIN | ACK, 40_000),
        delivered("nor does what comes late", &[ours(RESET, FINISHED)], ACK, 40_000),
        delivered("a flow first seen at its end has ended so far", &[], FIN | ACK, 40_000)
            .remembers(ours(FINISHED, OPEN))
            .counts(Reason::FlowNew),
        delivered(
            "a connection may begin again where it ended",
            &[ours(FINISHED, FINISHED)],
            SYN,
            40_000,
        )
        .remembers(own)
        .counts(Reason::FlowNew),
        delivered(
            "a flow that moves keeps its ends",
            &[{
                let (key, flow) = ours(FINISHED, FINISHED);
                (key, Flow { node: 3, ..flow })
            }],
            ACK,
            40_000,
        )
        .remembers(ours(FINISHED, FINISHED))
        .counts(Reason::FlowMoved),
        replied("a reply gets the client's own port back", aside, ACK),
        replied("the task's end is noted", own, FIN | ACK).remembers(ours(OPEN, FINISHED)),
        replied("the task's end is noted aside, too", aside, FIN | ACK)
            .remembers(moved_aside(ours(OPEN, FINISHED))),
        replied("the task's reset is noted", ours(FINISHED, OPEN), RST | ACK)
            .remembers(ours(FINISHED, RESET)),
        replied("an end noted once stays as it is", ours(OPEN, RESET), FIN | ACK),
    ];
    let local = |name| {
        Case::new(Hook::IngressTc, name, &from_client().tcp_with(SYN, 40_000, 9090))
            .when(|world| world.flows.extend([live]))
    };
    let here = flow(Protocol::Tcp, 90, HERE, 9090, 1);
    cases.push(
        local("a new connection from a taken port gets another at the ingress node")
            .is(Verdict::Peer(INTERFACE), Reason::TcDelivered)
            .serves(LOCAL_SERVICE)
            .becomes(&frame(TASK_MAC, GATEWAY_MAC).ipv4(CLIENT, TASK).tcp_with(
                SYN,
                alternate(HERE, 9090),
                90,
            ))
            .remembers(moved_aside(here))
            .counts(Reason::FlowAlternate),
    );
    let (key, value) = moved_aside(here);
    let taken = (key, Flow { client_port: 50_000_u16.to_be(), ..value });
    cases.push(
        local("with both ports taken a connection is refused at the ingress node")
            .when(|world| world.flows.extend([taken]))
            .is(Verdict::Drop, Reason::FlowClash),
    );
    cases
}
