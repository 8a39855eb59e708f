//! TC at the uplink: gives packets to local tasks, and sends on what XDP left over.
//!
//! Where XDP cannot run natively, this program alone serves the frontends: the kernel then puts
//! the packet in VXLAN, with segmentation offload, and fragments the outer packet where the path
//! is too narrow.

use crate::{
    Reason, Skb, Tables, Tunnel, Verdict,
    abi::{Counter, EndpointKey, VNI_INGRESS},
    ingress::{Choice, Miss, alternate_mac, choose, is_for_frontend},
    nat::{Delivery, deliver},
    packet::{Ipv4, Misfit, mac_words, put_mac},
};

/// Decides on a packet from the uplink.
#[inline(always)] // the program's body: a call would cost and gain nothing
pub fn ingress_tc<P: Skb, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let add = Counter { packets: packet.segments().into(), bytes: packet.length().into() };
    let (verdict, reason) = decide(packet, tables, add);
    tables.count(reason, add);
    verdict
}

#[inline(always)]
fn decide<P: Skb, T: Tables>(packet: &mut P, tables: &T, add: Counter) -> (Verdict, Reason) {
    // Behind a tag is another network, with addresses of its own.
    if !packet.is_for_this_host() || packet.vlan().is_some_and(|vlan| vlan != 0) {
        return (Verdict::Pass, Reason::TcForeign);
    }
    let ip = match Ipv4::parse(packet) {
        Ok(ip) => ip,
        Err(Misfit::Foreign) => return (Verdict::Pass, Reason::TcForeign),
        // The stack has no listener there and says so, which is better than silence.
        Err(Misfit::Options) => return (Verdict::Pass, Reason::TcOptions),
        Err(misfit) => {
            if !is_for_frontend(packet, tables) {
                return (Verdict::Pass, Reason::TcForeign);
            }
            let fragment = matches!(misfit, Misfit::Fragment);
            let reason = if fragment { Reason::TcFragment } else { Reason::TcMalformed };
            return (Verdict::Drop, reason);
        }
    };
    let choice = match choose(&ip, tables) {
        Ok(choice) => choice,
        Err(Miss::Foreign) => return (Verdict::Pass, Reason::TcForeign),
        Err(Miss::NoBackend) => return (Verdict::Pass, Reason::TcNoBackend),
    };
    let Some(config) = tables.config() else {
        return (Verdict::Pass, Reason::NoConfig);
    };
    if config.node == 0 {
        return (Verdict::Pass, Reason::NoConfig);
    }
    let Choice { service, target_port, slot, backend, .. } = choice;

    if backend.node == config.node {
        let key = EndpointKey { mac: backend.mac, pad: [0; 2] };
        let Some(endpoint) = tables.endpoint(&key) else {
            return (Verdict::Drop, Reason::TcNoEndpoint);
        };
        let interface = endpoint.ifindex;
        let headers = ip.headers();
        let (mac, node, vxlan_port) = (backend.mac, config.node, config.vxlan_port);
        let delivery = Delivery { endpoint, mac, target_port, node, vxlan_port };
        let refused = Reason::TcRefused;
        if let Err(reason) = deliver(packet, &headers, &delivery, tables, refused, add) {
            return (Verdict::Drop, reason);
        }
        tables.count_service(service, add);
        return (Verdict::Peer(interface), Reason::TcDelivered);
    }

    let remote = match tables.node(backend.node) {
        Some(node) if node.address != [0; 16] => node.address,
        _ => return (Verdict::Drop, Reason::TcNoNode),
    };
    let alternate = alternate_mac(slot, tables);
    let task = mac_words(&backend.mac);
    let Some(head) = packet.head_mut::<12>() else {
        return (Verdict::Drop, Reason::TcRefused);
    };
    put_mac(head, 0, task);
    put_mac(head, 6, alternate);
    if !packet.set_tunnel(&Tunnel { vni: VNI_INGRESS, remote }, &config.address) {
        return (Verdict::Drop, Reason::TcRefused);
    }
    tables.count_service(service, add);
    (Verdict::Redirect(config.vxlan), Reason::TcForwarded)
}
