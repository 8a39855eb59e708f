//! TC at the host's side of a task's veth: a reply gets its frontend's address and goes back.
//!
//! A task speaks with its own addresses only. What answers no flow is dropped for now: the way to
//! the outside and the overlays come with their own programs.
//!
//! Invariant: nothing from a task reaches the host's stack, so there is no verdict `Pass` here. Not
//! even ARP: the task's gateway is a permanent neighbour and no prefix is on its link, so nothing of
//! ours asks, while each question would cost the host an entry of its neighbour table, of which
//! there is one for all namespaces.

use crate::{
    Reason, Skb, Tables, Tunnel, Verdict,
    abi::{Counter, EndpointKey, FlowKey, VNI_RETURN},
    nat::{Change, ending, rewrite},
    packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, Ipv4, both_ports, number, tcp_flags},
    tables::End,
};

/// Decides on a packet from a task.
#[inline(always)] // the program's body: a call would cost and gain nothing
pub fn task_tc<P: Skb, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let add = Counter { packets: packet.segments().into(), bytes: packet.length().into() };
    let (verdict, reason) = match decide(packet, tables) {
        Ok(sent) => sent,
        Err(reason) => (Verdict::Drop, reason),
    };
    tables.count(reason, add);
    verdict
}

#[inline(always)]
fn decide<P: Skb, T: Tables>(packet: &mut P, tables: &T) -> Result<(Verdict, Reason), Reason> {
    // The tag would leave with the reply, into a network that the task has no part in.
    if packet.vlan().is_some() {
        return Err(Reason::TaskSpoofed);
    }
    let head = packet.head::<14>().ok_or(Reason::TaskNotIp)?;
    let mac = [head[6], head[7], head[8], head[9], head[10], head[11]];
    match [head[12], head[13]] {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_ARP => return Err(Reason::TaskArp),
        _ => return Err(Reason::TaskNotIp),
    }
    let endpoint = tables.endpoint(&EndpointKey { mac, pad: [0; 2] }).ok_or(Reason::TaskSpoofed)?;
    if endpoint.ifindex != packet.interface() {
        return Err(Reason::TaskSpoofed);
    }
    let ip = Ipv4::parse(packet).map_err(|_| Reason::TaskMalformed)?;
    if ip.source() != endpoint.address {
        return Err(Reason::TaskSpoofed);
    }
    let headers = ip.headers();
    // From the packet and not from the entry again, which may become another task's.
    let key = FlowKey {
        client: ip.destination(),
        task: ip.source(),
        client_port: ip.destination_port().to_be(),
        task_port: ip.source_port().to_be(),
        protocol: ip.protocol.number().into(),
    };
    let flow = tables.flow(&key).ok_or(Reason::TaskNoFlow)?;
    let config = tables.config().ok_or(Reason::NoConfig)?;
    if config.node == 0 || config.uplink == 0 {
        return Err(Reason::NoConfig);
    }
    // The way back first: a packet without one stays as it was.
    let way = if flow.node == config.node {
        None
    } else {
        let node = tables.node(flow.node).ok_or(Reason::TaskNoNode)?;
        if node.address == [0; 16] {
            return Err(Reason::TaskNoNode);
        }
        Some(Tunnel { vni: VNI_RETURN, remote: node.address })
    };
    let (frontend_port, client_port) =
        (u16::from_be(flow.frontend_port), u16::from_be(flow.client_port));
    let change = Change {
        from: End::Task,
        address: [headers.source, number(&flow.frontend)],
        ports: [headers.ports(), both_ports(frontend_port, client_port)],
        macs: None,
    };
    let end = ending(tcp_flags(packet, headers.protocol));
    if end > flow.task_end {
        tables.end(&key, End::Task, end);
    }
    if !rewrite(packet, headers.protocol, change) {
        return Err(Reason::TaskRefused);
    }
    let Some(tunnel) = way else {
        return Ok((Verdict::Neighbour(config.uplink), Reason::TaskReplied));
    };
    if !packet.set_tunnel(&tunnel, &config.address) {
        return Err(Reason::TaskRefused);
    }
    Ok((Verdict::Redirect(config.vxlan), Reason::TaskTunneled))
}
