//! TC at the VXLAN device: requests for local tasks, and replies on their way out to clients.
//!
//! Only nodes of the cluster are believed, by the outer source address. A request carries all that
//! is needed to deliver and to answer it, so this node may forget everything at any time. A reply
//! leaves only with an address of this node as its source: nothing foreign comes from here.

use crate::{
    Reason, Skb, Tables, Verdict,
    abi::{Config, Counter, EndpointKey, VNI_INGRESS, VNI_RETURN},
    nat::{Delivery, deliver},
    packet::{Ipv4, frontend_index},
};

/// Decides on a packet from the VXLAN device.
#[inline(always)] // the program's body: a call would cost and gain nothing
pub fn mesh_tc<P: Skb, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let add = Counter { packets: packet.segments().into(), bytes: packet.length().into() };
    let (verdict, reason) = match decide(packet, tables, add) {
        Ok(sent) => sent,
        Err(reason) => (Verdict::Drop, reason),
    };
    tables.count(reason, add);
    verdict
}

#[inline(always)]
fn decide<P: Skb, T: Tables>(
    packet: &mut P,
    tables: &T,
    add: Counter,
) -> Result<(Verdict, Reason), Reason> {
    if packet.vlan().is_some_and(|vlan| vlan != 0) {
        return Err(Reason::MeshMalformed);
    }
    let tunnel = packet.tunnel().ok_or(Reason::MeshNoTunnel)?;
    let node = tables.node_number(&tunnel.remote).ok_or(Reason::MeshStranger)?;
    let config = tables.config().ok_or(Reason::NoConfig)?;
    match tunnel.vni {
        VNI_INGRESS => {
            let node = u16::try_from(node).map_err(|_| Reason::MeshStranger)?;
            bring_in(packet, tables, (node, config.vxlan_port), add)
        }
        VNI_RETURN => send_out(packet, tables, config),
        _ => Err(Reason::MeshUnknownVni),
    }
}

/// A request: to the task that the inner destination MAC names.
#[inline(always)]
fn bring_in<P: Skb, T: Tables>(
    packet: &mut P,
    tables: &T,
    (node, vxlan_port): (u16, u16),
    add: Counter,
) -> Result<(Verdict, Reason), Reason> {
    let ip = Ipv4::parse(packet).map_err(|_| Reason::MeshMalformed)?;
    let key = EndpointKey { mac: ip.destination_mac(), pad: [0; 2] };
    let endpoint = tables.endpoint(&key).ok_or(Reason::MeshNoEndpoint)?;
    let interface = endpoint.ifindex;
    // Without its frontend the task's port is not known: the flow ends with the publication.
    let index = frontend_index(ip.protocol, ip.destination_port());
    let target_port = match tables.frontend(index) {
        Some(frontend) if frontend.service != 0 => frontend.target_port,
        _ => return Err(Reason::MeshNotPublished),
    };
    let headers = ip.headers();
    let delivery = Delivery { endpoint, mac: key.mac, target_port, node, vxlan_port };
    deliver(packet, &headers, &delivery, tables, Reason::MeshRefused, add)?;
    // The frame was addressed to the task, not to the VXLAN device.
    packet.claim();
    Ok((Verdict::Peer(interface), Reason::MeshDelivered))
}

/// A reply: to its client, from the address that the client asked.
#[inline(always)]
fn send_out<P: Skb, T: Tables>(
    packet: &P,
    tables: &T,
    config: &Config,
) -> Result<(Verdict, Reason), Reason> {
    let ip = Ipv4::parse(packet).map_err(|_| Reason::MeshMalformed)?;
    if !tables.serves(&ip.source()) {
        return Err(Reason::MeshForeignSource);
    }
    if config.uplink == 0 {
        return Err(Reason::NoConfig);
    }
    Ok((Verdict::Neighbour(config.uplink), Reason::MeshReturned))
}
