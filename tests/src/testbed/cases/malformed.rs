//! What no hook may take for a packet: cut at each header, lying lengths, wrong versions.
//!
//! The kernel takes no test packet without an Ethernet header, nor one of that header alone in
//! TC, so those are left out.

use shoal_datapath::abi::VNI_INGRESS;
use shoal_datapath::packet::Protocol;
use shoal_datapath::{Reason, Verdict};

use super::super::{Case, Hook, packet::Packet, packet::frame, world::*};
use super::{datagram, request};

/// A malformed packet at the uplink: XDP leaves it to TC, which acts as told.
fn at_uplink(
    xdp: (&'static str, Reason),
    tc: (&'static str, Verdict, Reason),
    packet: &Packet,
) -> [Case; 2] {
    [
        Case::new(Hook::IngressXdp, xdp.0, packet).is(Verdict::Pass, xdp.1),
        Case::new(Hook::IngressTc, tc.0, packet).is(tc.1, tc.2),
    ]
}

fn in_tunnel(name: &'static str, packet: &Packet) -> Case {
    Case::new(Hook::MeshTc, name, &packet.clone().between(TASK_MAC, REMOTE_MAC))
        .through(VNI_INGRESS, THERE)
        .is(Verdict::Drop, Reason::MeshMalformed)
}

fn from_task(name: &'static str, change: impl FnOnce(Packet) -> Packet) -> Case {
    let reply = frame(GATEWAY_MAC, TASK_MAC).ipv4(TASK, CLIENT).tcp(90, 40_000).payload(b"200");
    Case::new(Hook::TaskTc, name, &change(reply))
        .when(|world| world.flows.extend([flow(Protocol::Tcp, 90, THERE, 9090, 2)]))
        .is(Verdict::Drop, Reason::TaskMalformed)
}

#[allow(clippy::too_many_lines, reason = "a table, one entry per case")]
pub fn cases() -> Vec<Case> {
    let (drop, malformed) = (Verdict::Drop, Reason::TcMalformed);
    let (pass, foreign) = (Verdict::Pass, Reason::TcForeign);
    let mut cases = vec![
        Case::new(Hook::IngressXdp, "XDP: an Ethernet header alone", &request(8080).cut_to(14))
            .is(Verdict::Pass, Reason::XdpMalformed),
        Case::new(
            Hook::IngressXdp,
            "XDP: an Ethernet header alone, of another protocol",
            &request(8080).ethertype(0x86dd).cut_to(14),
        )
        .is(Verdict::Pass, Reason::XdpForeign),
        in_tunnel("mesh: cut in the IPv4 header", &request(9090).cut_to(30)),
        in_tunnel("mesh: cut before the ports", &request(9090).cut_to(34)),
        in_tunnel("mesh: cut in the TCP header", &request(9090).cut_to(50)),
        in_tunnel("mesh: a length over the packet's end", &request(9090).claims_length(1000)),
        in_tunnel("mesh: a length under the header's", &request(9090).claims_length(39)),
        in_tunnel("mesh: a header of four words", &request(9090).header_words(4)),
        in_tunnel("mesh: version 6 in an IPv4 frame", &request(9090).version(6)),
        from_task("task: cut in the IPv4 header", |reply| reply.cut_to(30)),
        from_task("task: cut in the TCP header", |reply| reply.cut_to(50)),
        from_task("task: a length over the packet's end", |reply| reply.claims_length(1000)),
        from_task("task: version 5", |reply| reply.version(5)),
        from_task("task: a header of four words", |reply| reply.header_words(4)),
        from_task("task: IP options", |reply| reply.header_words(6)),
    ];
    let uplink = [
        at_uplink(
            ("XDP: one byte of the IPv4 header", Reason::XdpMalformed),
            ("TC: one byte of the IPv4 header is the stack's to drop", pass, foreign),
            &request(8080).cut_to(15),
        ),
        at_uplink(
            ("XDP: cut before the addresses", Reason::XdpMalformed),
            ("TC: cut before the addresses is the stack's to drop", pass, foreign),
            &request(8080).cut_to(26),
        ),
        at_uplink(
            ("XDP: cut before the ports", Reason::XdpMalformed),
            ("TC: cut before the ports is the stack's to drop", pass, foreign),
            &request(8080).cut_to(34),
        ),
        at_uplink(
            ("XDP: cut behind the ports", Reason::XdpMalformed),
            ("TC: cut behind a published port is dropped", drop, malformed),
            &request(8080).cut_to(38),
        ),
        at_uplink(
            ("XDP: cut behind another port", Reason::XdpMalformed),
            ("TC: cut behind another port is the stack's to drop", pass, foreign),
            &request(22).cut_to(38),
        ),
        at_uplink(
            ("XDP: cut in the TCP header", Reason::XdpMalformed),
            ("TC: cut in the TCP header is dropped", drop, malformed),
            &request(8080).cut_to(53),
        ),
        at_uplink(
            ("XDP: a UDP header without its end", Reason::XdpMalformed),
            ("TC: a UDP header without its end is dropped", drop, malformed),
            &datagram(5353).cut_to(41),
        ),
        at_uplink(
            ("XDP: a length over the packet's end", Reason::XdpMalformed),
            ("TC: a length over the packet's end is dropped", drop, malformed),
            &request(8080).claims_length(1000),
        ),
        at_uplink(
            ("XDP: a length under TCP's header", Reason::XdpMalformed),
            ("TC: a length under TCP's header is dropped", drop, malformed),
            &request(8080).claims_length(39),
        ),
        at_uplink(
            ("XDP: a length under UDP's header", Reason::XdpMalformed),
            ("TC: a length under UDP's header is dropped", drop, malformed),
            &datagram(5353).claims_length(27),
        ),
        at_uplink(
            ("XDP: a length of zero", Reason::XdpMalformed),
            ("TC: a length of zero is dropped", drop, malformed),
            &request(8080).claims_length(0),
        ),
        at_uplink(
            ("XDP: version 6 in an IPv4 frame", Reason::XdpMalformed),
            ("TC: version 6 in an IPv4 frame is dropped", drop, malformed),
            &request(8080).version(6),
        ),
        at_uplink(
            ("XDP: a header of four words", Reason::XdpMalformed),
            ("TC: a header of four words is dropped", drop, malformed),
            &request(8080).header_words(4),
        ),
        at_uplink(
            ("XDP: a header of no words", Reason::XdpMalformed),
            ("TC: a header of no words is dropped", drop, malformed),
            &request(8080).header_words(0),
        ),
        at_uplink(
            ("XDP: one word of options", Reason::XdpOptions),
            ("TC: one word of options", pass, Reason::TcOptions),
            &request(8080).header_words(6),
        ),
        at_uplink(
            ("XDP: ten words of options", Reason::XdpOptions),
            ("TC: ten words of options", pass, Reason::TcOptions),
            &request(8080).header_words(15),
        ),
        at_uplink(
            ("XDP: a first fragment", Reason::XdpFragment),
            ("TC: a first fragment", drop, Reason::TcFragment),
            &datagram(5353).fragment(0x2000),
        ),
        at_uplink(
            ("XDP: the last fragment", Reason::XdpFragment),
            ("TC: the last fragment", pass, foreign),
            &datagram(5353).fragment(0x00b9),
        ),
        at_uplink(
            ("XDP: a first fragment for another address", Reason::XdpFragment),
            ("TC: a first fragment for another address", pass, foreign),
            &frame(UPLINK_MAC, ROUTER_MAC)
                .ipv4(CLIENT, THERE)
                .udp(40_000, 5353)
                .fragment(0x2000)
                .payload(b"?"),
        ),
        at_uplink(
            ("XDP: a short frame that only looks like TCP", Reason::XdpForeign),
            ("TC: a short frame that only looks like TCP", pass, foreign),
            &request(8080).ethertype(0x88cc).cut_to(40),
        ),
        at_uplink(
            ("XDP: ICMP", Reason::XdpForeign),
            ("TC: ICMP", pass, foreign),
            &frame(UPLINK_MAC, ROUTER_MAC).ipv4(CLIENT, HERE).payload(&[8; 16]),
        ),
        at_uplink(
            ("XDP: ICMP with options", Reason::XdpForeign),
            ("TC: ICMP with options", pass, foreign),
            &frame(UPLINK_MAC, ROUTER_MAC).ipv4(CLIENT, HERE).header_words(6).payload(&[8; 16]),
        ),
        at_uplink(
            ("XDP: SCTP to a published port", Reason::XdpForeign),
            ("TC: SCTP to a published port", pass, foreign),
            &request(8080).protocol(132),
        ),
        at_uplink(
            ("XDP: an IPv4 packet without a payload", Reason::XdpForeign),
            ("TC: an IPv4 packet without a payload", pass, foreign),
            &frame(UPLINK_MAC, ROUTER_MAC).ipv4(CLIENT, HERE).protocol(59),
        ),
        at_uplink(
            ("XDP: a tagged frame", Reason::XdpForeign),
            ("TC: a frame tagged twice", pass, foreign),
            &frame(UPLINK_MAC, ROUTER_MAC).ethertype(0x88a8).payload(&[0; 60]),
        ),
        at_uplink(
            ("XDP: ARP", Reason::XdpForeign),
            ("TC: ARP", pass, foreign),
            &frame([0xff; 6], ROUTER_MAC).ethertype(0x0806).payload(&[1; 28]),
        ),
    ];
    cases.extend(uplink.into_iter().flatten());
    cases
}
