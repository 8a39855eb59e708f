//! Network address translation at the backend node: frontend ↔ task, with right checksums.
//!
//! TCP's and UDP's checksums go through the accessor, because the kernel alone knows whether one
//! is complete, partial or left to the hardware. The IPv4 header's is always complete.
//!
//! The task sees its clients, and all that tells two flows of one client apart is the client's
//! port: the frontends are rewritten to one. But a client chooses its port for each frontend anew,
//! so it may use one for two of them at a time. [`deliver`] says what then happens.

use crate::{
    Skb, Tables,
    abi::{Counter, Endpoint, FINISHED, Flow, FlowKey, Mac, OPEN, RESET},
    checksum, hash,
    packet::{
        ACK, FIN, HEADERS, Headers, IP_CHECKSUM, MacWords, Protocol, RST, SYN, both_ports,
        mac_words, mapped, number, put, put_mac, tcp_flags,
    },
    reason::Reason,
    tables::End,
};

/// What a packet becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// Whose address changes: the client's packet goes to the task, the task's comes from the
    /// frontend.
    pub from: End,
    /// That address now, and then.
    pub address: [u32; 2],
    /// Both ports now, and then.
    pub ports: [u32; 2],
    /// Destination and source MAC; `None` leaves them.
    pub macs: Option<[MacWords; 2]>,
}

/// Rewrites the packet; false when the kernel refuses, with the packet half-changed.
#[inline(always)] // three callers, one per program
pub(crate) fn rewrite<P: Skb>(packet: &mut P, protocol: Protocol, change: Change) -> bool {
    let [old_address, address] = change.address;
    let [old_ports, ports] = change.ports;
    if !packet.replace_address_sum(protocol, old_address, address)
        || !packet.replace_port_sum(protocol, old_ports, ports)
    {
        return false;
    }
    let Some(head) = packet.head_mut::<HEADERS>() else {
        return false;
    };
    let sum = u16::from_be_bytes([head[IP_CHECKSUM], head[IP_CHECKSUM + 1]]);
    let sum = checksum::replace(sum, checksum::halves(old_address), checksum::halves(address));
    put(head, IP_CHECKSUM, sum.to_be_bytes());
    match change.from {
        End::Client => put(head, 30, address.to_be_bytes()),
        End::Task => put(head, 26, address.to_be_bytes()),
    }
    put(head, 34, ports.to_be_bytes());
    if let Some([destination, source]) = change.macs {
        put_mac(head, 0, destination);
        put_mac(head, 6, source);
    }
    true
}

/// Where a request came through and where it goes, besides what its headers say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery<'t> {
    /// The local task.
    pub endpoint: &'t Endpoint,
    /// The task's MAC.
    pub mac: Mac,
    /// Port that the task listens on, host order.
    pub target_port: u16,
    /// The ingress node's number.
    pub node: u16,
    /// The underlay's VXLAN port, host order.
    pub vxlan_port: u16,
}

/// Remembers the flow of a request for a local task and changes the packet.
///
/// A flow known as it is costs a look and no write. One that came through another node before now
/// answers the new way. Where the client's port is taken by its flow to another frontend:
///
/// * A new TCP connection gets another port, by which the task tells the two apart; the reply gets
///   the client's own back. Were that one taken, too, the connection is refused by silence, and the
///   client tries again from the same port or another: better than to break one that stands.
/// * Once a connection has ended, its port is free.
/// * A segment within a connection takes the port over: something before the nodes moved the
///   client to another of them. So does a datagram, because nothing tells when UDP's flows begin
///   or end; of two frontends asked from one port, the latest answers.
///
/// A datagram from the underlay's VXLAN port is refused: the task's answer, which says what a
/// stranger wants it to say, would come from a node of the cluster into another node's tunnel.
///
/// * `headers` - the request's protocol, addresses and ports, copied out of the packet.
///
/// # Errors
/// The reason to drop it for; `refused` when the kernel refuses a change.
#[inline(always)] // two callers, one per program
pub(crate) fn deliver<P: Skb, T: Tables>(
    packet: &mut P,
    headers: &Headers,
    delivery: &Delivery<'_>,
    tables: &T,
    refused: Reason,
    add: Counter,
) -> Result<(), Reason> {
    let Delivery { endpoint, mac, target_port, node, vxlan_port } = *delivery;
    let Headers { protocol, source, destination, source_port, destination_port } = *headers;
    if protocol == Protocol::Udp && source_port == vxlan_port {
        return Err(Reason::FlowReflected);
    }
    // Once: the entry may become another task's while we look at it.
    let task = number(&endpoint.address);
    let gateway = mac_words(&endpoint.gateway);
    let flags = tcp_flags(packet, protocol);
    // Locals of their own: what a map is given stays in memory, all else in registers.
    let mut key = FlowKey {
        client: mapped(source.to_be_bytes()),
        task: mapped(task.to_be_bytes()),
        client_port: source_port.to_be(),
        task_port: target_port.to_be(),
        protocol: protocol.number().into(),
    };
    let mut flow = Flow {
        frontend: mapped(destination.to_be_bytes()),
        frontend_port: destination_port.to_be(),
        node,
        client_port: source_port.to_be(),
        client_end: ending(flags),
        task_end: OPEN,
    };
    let write = match place(&mut key, &flow, headers, flags, tables)? {
        Place::Known(known) => {
            let moved = known.node != node;
            let again = begins(flags) && (known.client_end | known.task_end) != OPEN;
            if moved || again {
                if !again {
                    flow.client_end = flow.client_end.max(known.client_end);
                    flow.task_end = known.task_end;
                }
                Some(if moved { Reason::FlowMoved } else { Reason::FlowNew })
            } else {
                if flow.client_end > known.client_end {
                    tables.end(&key, End::Client, flow.client_end);
                }
                None
            }
        }
        Place::Free(reason) => Some(reason),
    };
    if let Some(reason) = write {
        if !tables.remember(&key, &flow) {
            return Err(Reason::FlowLost);
        }
        tables.count(reason, add);
    }
    let change = Change {
        from: End::Client,
        address: [destination, task],
        ports: [headers.ports(), both_ports(u16::from_be(key.client_port), target_port)],
        macs: Some([mac_words(&mac), gateway]),
    };
    if rewrite(packet, protocol, change) { Ok(()) } else { Err(refused) }
}

/// Where a flow is remembered, or is to be.
enum Place<'t> {
    /// It is there.
    Known(&'t Flow),
    /// It is to be put there, and that counts as this.
    Free(Reason),
}

/// Finds the place of a flow: under its client's own port, else under its one alternate.
///
/// * `key` - comes with the client's own port and leaves with the one that the task sees.
///
/// # Errors
/// [`Reason::FlowClash`].
#[inline(always)] // as a call, key and flow would have to be copied
fn place<'t, T: Tables>(
    key: &mut FlowKey,
    flow: &Flow,
    headers: &Headers,
    flags: u8,
    tables: &'t T,
) -> Result<Place<'t>, Reason> {
    let own = match tables.flow(key) {
        Some(known) if is_same(known, flow) => return Ok(Place::Known(known)),
        Some(known) if begins(flags) && !has_ended(known) => None,
        Some(_) => Some(Reason::FlowMoved),
        None => Some(Reason::FlowNew),
    };
    // Only what begins is ever put under an alternate, and no datagram says so.
    if let (Protocol::Udp, Some(reason)) = (headers.protocol, own) {
        return Ok(Place::Free(reason));
    }
    let Headers { source_port, destination, destination_port, .. } = *headers;
    key.client_port = hash::alternate_port(source_port, destination, destination_port).to_be();
    match (tables.flow(key), own) {
        (Some(known), _) if is_same(known, flow) => Ok(Place::Known(known)),
        (_, Some(reason)) => {
            key.client_port = flow.client_port;
            Ok(Place::Free(reason))
        }
        (Some(taken), None) if !has_ended(taken) => Err(Reason::FlowClash),
        _ => Ok(Place::Free(Reason::FlowAlternate)),
    }
}

/// Whether two flows are one to their client, whatever node it comes through.
#[inline(always)]
fn is_same(known: &Flow, flow: &Flow) -> bool {
    known.frontend == flow.frontend
        && known.frontend_port == flow.frontend_port
        && known.client_port == flow.client_port
}

/// Whether nothing more is to come: both ends have finished, or one has broken off.
#[inline(always)]
fn has_ended(flow: &Flow) -> bool {
    flow.client_end + flow.task_end >= FINISHED + FINISHED
}

/// Whether the segment asks for a new connection.
#[inline(always)]
fn begins(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// What TCP's flags say of the sender's end of the flow.
#[inline(always)]
pub(crate) fn ending(flags: u8) -> u8 {
    if flags & RST != 0 {
        RESET
    } else if flags & FIN != 0 {
        FINISHED
    } else {
        OPEN
    }
}

const _: () = assert!(RESET >= FINISHED + FINISHED);
