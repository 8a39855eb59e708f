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
    packet::{ETHERTYPE_IPV4, Ipv4, Misfit, mac_words, number, put, put_mac},
};

/// Bytes that are written: the outer headers and the inner MACs.
const WRITTEN: usize = OVERHEAD as usize + 12;
/// First word of the outer IPv4 header: version 4, five words of header.
const VERSION: u32 = 0x4500_0000;
/// Second word: identification 0, "do not fragment".
const DO_NOT_FRAGMENT: u32 = 0x0000_4000;
/// Third word: 64 hops, UDP.
const HOPS_AND_UDP: u32 = 0x4011_0000;

/// Decides on a packet from the uplink.
#[inline(always)] // the program's body: a call would cost and gain nothing
pub fn ingress_xdp<P: Frame, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let bytes = u64::from(packet.length());
    match forward(packet, tables) {
        Ok(sent) => {
            tables.count_service(sent.service, sent.add);
            tables.count(Reason::XdpForwarded, sent.add);
            Verdict::Transmit
        }
        Err((verdict, reason)) => {
            tables.count(reason, Counter { packets: 1, bytes });
            verdict
        }
    }
}

/// A packet that is on its way.
struct Sent {
    service: u16,
    add: Counter,
}

#[inline(always)]
fn forward<P: Frame, T: Tables>(packet: &mut P, tables: &T) -> Result<Sent, (Verdict, Reason)> {
    let ip = match Ipv4::parse(packet) {
        Ok(ip) => ip,
        Err(Misfit::Foreign) => return Err((Verdict::Pass, Reason::XdpForeign)),
        Err(Misfit::Malformed) => return Err((Verdict::Pass, Reason::XdpMalformed)),
        Err(Misfit::Options) => return Err((Verdict::Pass, Reason::XdpOptions)),
        Err(Misfit::Fragment) => return Err((Verdict::Pass, Reason::XdpFragment)),
    };
    let choice = match choose(&ip, tables) {
        Ok(choice) => choice,
        Err(Miss::Foreign) => return Err((Verdict::Pass, Reason::XdpForeign)),
        Err(Miss::NoBackend) => return Err((Verdict::Pass, Reason::XdpNoBackend)),
    };
    let Some(config) = tables.config() else {
        return Err((Verdict::Pass, Reason::NoConfig));
    };
    if config.node == 0 {
        return Err((Verdict::Pass, Reason::NoConfig));
    }
    let Choice { service, hash, slot, backend, .. } = choice;
    if backend.node == config.node {
        return Err((Verdict::Pass, Reason::XdpLocal));
    }
    let Some(node) = tables.node(backend.node) else {
        return Err((Verdict::Pass, Reason::XdpNoNextHop));
    };
    // No interface has index 0, which stands for a next hop that is not known.
    if node.ifindex != packet.interface() {
        return Err((Verdict::Pass, Reason::XdpNoNextHop));
    }
    let length = u32::from(ip.length);
    let Ok(ip_length) = u16::try_from(length + OVERHEAD) else {
        return Err((Verdict::Pass, Reason::XdpTooBig));
    };
    if u32::from(ip_length) > node.mtu {
        return Err((Verdict::Pass, Reason::XdpTooBig));
    }
    // A flooded or mirrored frame is another host's: a copy would reach the task twice.
    if mac_words(&ip.destination_mac()) != mac_words(&node.source) {
        return Err((Verdict::Pass, Reason::XdpOtherHost));
    }
    let congestion = ip.congestion();
    let alternate = alternate_mac(slot, tables);
    let task = mac_words(&backend.mac);
    let (next_hop, source) = (mac_words(&node.next_hop), mac_words(&node.source));

    if !packet.grow(OVERHEAD) {
        return Err((Verdict::Pass, Reason::XdpNoRoom));
    }
    let Some(outer) = packet.head_mut::<WRITTEN>() else {
        return Err((Verdict::Drop, Reason::XdpNoRoom));
    };
    let header = [
        // Only the congestion bits come from the inner header, as RFC 6040 asks.
        VERSION | u32::from(congestion) << 16 | u32::from(ip_length),
        DO_NOT_FRAGMENT,
        HOPS_AND_UDP,
        number(&config.address),
        number(&node.address),
    ];
    let sum = checksum::of_header(header);
    // From the inner packet's own length, so that padding behind it is cut off at the far end.
    let udp_length = ip_length - 20;

    put_mac(outer, 0, next_hop);
    put_mac(outer, 6, source);
    put(outer, 12, ETHERTYPE_IPV4);

    put(outer, 14, header[0].to_be_bytes());
    put(outer, 18, header[1].to_be_bytes());
    put(outer, 22, (header[2] | u32::from(sum)).to_be_bytes());
    put(outer, 26, header[3].to_be_bytes());
    put(outer, 30, header[4].to_be_bytes());

    put(outer, 34, hash::source_port(hash).to_be_bytes());
    put(outer, 36, config.vxlan_port.to_be_bytes());
    put(outer, 38, udp_length.to_be_bytes());
    // No outer UDP checksum: the inner ones stay, and computing it costs more than all the rest.
    put(outer, 40, [0, 0]);

    put(outer, 42, [0x08, 0, 0, 0]);
    put(outer, 46, (VNI_INGRESS << 8).to_be_bytes());

    put_mac(outer, 50, task);
    put_mac(outer, 56, alternate);

    Ok(Sent { service, add: Counter { packets: 1, bytes: 14 + u64::from(length) } })
}
