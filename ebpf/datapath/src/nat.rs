//! Network address translation at the backend node: frontend ↔ task, with right checksums.
//!
//! TCP's and UDP's checksums go through the accessor, because the kernel alone knows whether one
//! is complete, partial or left to the hardware. The IPv4 header's is always complete.

use crate::{
    Skb, Tables,
    abi::{Counter, Endpoint, Flow, FlowKey, Mac},
    checksum,
    packet::{
        HEADERS, Headers, IP_CHECKSUM, MacWords, Protocol, mac_words, mapped, number, put, put_mac,
    },
    reason::Reason,
};

/// Which end of the packet changes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The source: a reply.
    Source,
    /// The destination: a request.
    Destination,
}

/// What one end of a packet becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// Which end.
    pub end: End,
    /// Its address now, and then.
    pub address: [u32; 2],
    /// Its port now, and then; host order.
    pub port: [u16; 2],
    /// Destination and source MAC; `None` leaves them.
    pub macs: Option<[MacWords; 2]>,
}

/// Rewrites one end of the packet; false when the kernel refuses, with the packet half-changed.
#[inline(always)] // three callers, one per program
pub(crate) fn rewrite<P: Skb>(packet: &mut P, protocol: Protocol, change: Change) -> bool {
    let [old_address, address] = change.address;
    let [old_port, port] = change.port;
    if !packet.replace_address_sum(protocol, old_address, address)
        || !packet.replace_port_sum(protocol, old_port, port)
    {
        return false;
    }
    let Some(head) = packet.head_mut::<HEADERS>() else {
        return false;
    };
    let sum = u16::from_be_bytes([head[IP_CHECKSUM], head[IP_CHECKSUM + 1]]);
    let sum = checksum::replace(sum, checksum::halves(old_address), checksum::halves(address));
    put(head, IP_CHECKSUM, sum.to_be_bytes());
    match change.end {
        End::Source => {
            put(head, 26, address.to_be_bytes());
            put(head, 34, port.to_be_bytes());
        }
        End::Destination => {
            put(head, 30, address.to_be_bytes());
            put(head, 36, port.to_be_bytes());
        }
    }
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
    /// The frontend's service.
    pub service: u16,
    /// The ingress node's number.
    pub node: u16,
}

/// Remembers the flow of a request for a local task and changes the packet.
///
/// A flow known as it is costs a look and no write. One that came another way before now answers
/// the new way: its client moved to another ingress node, or uses one port for two frontends of
/// the task, of which only the latest can be answered.
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
    let Delivery { endpoint, mac, target_port, service, node } = *delivery;
    let Headers { protocol, source, destination, source_port, destination_port } = *headers;
    // Locals of their own: what a map is given stays in memory, all else in registers.
    let key = FlowKey {
        client: mapped(source.to_be_bytes()),
        task: endpoint.address,
        client_port: source_port.to_be(),
        task_port: target_port.to_be(),
        protocol: protocol.number(),
        pad: [0; 3],
    };
    let flow = Flow {
        frontend: mapped(destination.to_be_bytes()),
        frontend_port: destination_port.to_be(),
        node,
        service,
        pad: 0,
    };
    let known = tables.flow(&key);
    if known != Some(&flow) {
        let first = if known.is_none() { Reason::FlowNew } else { Reason::FlowMoved };
        if !tables.remember(&key, &flow) {
            return Err(Reason::FlowLost);
        }
        tables.count(first, add);
    }
    let change = Change {
        end: End::Destination,
        address: [destination, number(&endpoint.address)],
        port: [destination_port, target_port],
        macs: Some([mac_words(&mac), mac_words(&endpoint.gateway)]),
    };
    if rewrite(packet, protocol, change) { Ok(()) } else { Err(refused) }
}
