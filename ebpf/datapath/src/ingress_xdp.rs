//! XDP at the uplink: a client's packet for a task on another node leaves at once, in VXLAN.
//!
//! The packet itself is not touched: 50 bytes come before it, whose inner destination MAC names
//! the task and whose inner source MAC names the slot's alternate. Everything else is passed on
//! and TC decides: local tasks (after GRO, which XDP comes before), fragments, options, packets
//! too big for the path.
//!
//! The outer packet says "do not fragment" with identification 0 (RFC 6864 allows it then): it was
//! measured against the path's MTU, and where the table is wrong an ICMP error tells the kernel,
//! while a fragmented tunnel would only be slow and silent.

use crate::{
    Frame, Reason, Tables, Verdict,
    abi::{Counter, OVERHEAD, VNI_INGRESS},
    checksum, hash,
    ingress::{Choice, Miss, alternate_mac, choose},
    packet::{Ipv4, Misfit, unmapped},
};

/// Bytes that are written: the outer headers and the inner MACs.
const WRITTEN: usize = OVERHEAD as usize + 12;
/// Version 4, five words of header; "do not fragment"; 64 hops, UDP.
const IP_CONSTANT_WORDS: u32 = 0x4500 + 0x4000 + 0x4011;

/// Decides on a packet from the uplink.
#[inline(always)] // the program's body: a call would cost and gain nothing
pub fn ingress_xdp<P: Frame, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let bytes = u64::from(packet.length());
    let (verdict, reason) = decide(packet, tables);
    tables.count(reason, Counter { packets: 1, bytes });
    verdict
}

#[inline(always)]
fn decide<P: Frame, T: Tables>(packet: &mut P, tables: &T) -> (Verdict, Reason) {
    let ip = match Ipv4::parse(packet) {
        Ok(ip) => ip,
        Err(Misfit::Foreign) => return (Verdict::Pass, Reason::XdpForeign),
        Err(Misfit::Malformed) => return (Verdict::Pass, Reason::XdpMalformed),
        Err(Misfit::Options) => return (Verdict::Pass, Reason::XdpOptions),
        Err(Misfit::Fragment) => return (Verdict::Pass, Reason::XdpFragment),
    };
    let choice = match choose(&ip, tables) {
        Ok(choice) => choice,
        Err(Miss::Foreign) => return (Verdict::Pass, Reason::XdpForeign),
        Err(Miss::NoBackend) => return (Verdict::Pass, Reason::XdpNoBackend),
    };
    let Some(config) = tables.config() else {
        return (Verdict::Pass, Reason::NoConfig);
    };
    if config.node == 0 {
        return (Verdict::Pass, Reason::NoConfig);
    }
    let Choice { service, hash, slot, backend, .. } = choice;
    if backend.node == config.node {
        return (Verdict::Pass, Reason::XdpLocal);
    }
    let Some(node) = tables.node(backend.node) else {
        return (Verdict::Pass, Reason::XdpNoNextHop);
    };
    if node.ifindex == 0 || node.ifindex != packet.interface() {
        return (Verdict::Pass, Reason::XdpNoNextHop);
    }
    let length = u32::from(ip.length);
    let Ok(ip_length) = u16::try_from(length + OVERHEAD) else {
        return (Verdict::Pass, Reason::XdpTooBig);
    };
    if u32::from(ip_length) > node.mtu {
        return (Verdict::Pass, Reason::XdpTooBig);
    }
    // A flooded or mirrored frame is another host's: a copy would reach the task twice.
    if ip.destination_mac() != node.source {
        return (Verdict::Pass, Reason::XdpOtherHost);
    }
    let congestion = ip.congestion();
    let inner_source = alternate_mac(slot, tables);

    if !packet.grow(OVERHEAD) {
        return (Verdict::Pass, Reason::XdpNoRoom);
    }
    let Some(outer) = packet.head_mut::<WRITTEN>() else {
        return (Verdict::Drop, Reason::XdpNoRoom);
    };
    let local = unmapped(&config.address);
    let remote = unmapped(&node.address);
    // From the inner packet's own length, so that padding behind it is cut off at the far end.
    let udp_length = ip_length - 20;
    let sum = checksum::fold(
        IP_CONSTANT_WORDS
            + u32::from(congestion)
            + u32::from(ip_length)
            + checksum::words(local)
            + checksum::words(remote),
    );

    outer[0..6].copy_from_slice(&node.next_hop);
    outer[6..12].copy_from_slice(&node.source);
    outer[12..14].copy_from_slice(&[0x08, 0x00]);

    // Only the congestion bits come from the inner header, as RFC 6040 asks.
    outer[14..16].copy_from_slice(&[0x45, congestion]);
    outer[16..18].copy_from_slice(&ip_length.to_be_bytes());
    outer[18..24].copy_from_slice(&[0, 0, 0x40, 0, 64, 17]);
    outer[24..26].copy_from_slice(&(!sum).to_be_bytes());
    outer[26..30].copy_from_slice(&local);
    outer[30..34].copy_from_slice(&remote);

    outer[34..36].copy_from_slice(&hash::source_port(hash).to_be_bytes());
    outer[36..38].copy_from_slice(&config.vxlan_port.to_be_bytes());
    outer[38..40].copy_from_slice(&udp_length.to_be_bytes());
    // No outer UDP checksum: the inner ones stay, and computing it costs more than all the rest.
    outer[40..42].copy_from_slice(&[0, 0]);

    outer[42..46].copy_from_slice(&[0x08, 0, 0, 0]);
    outer[46..50].copy_from_slice(&(VNI_INGRESS << 8).to_be_bytes());

    outer[50..56].copy_from_slice(&backend.mac);
    outer[56..62].copy_from_slice(&inner_source);

    let bytes = 14 + u64::from(length);
    tables.count_service(service, Counter { packets: 1, bytes });
    (Verdict::Transmit, Reason::XdpForwarded)
}
