//! The choice that XDP and TC at the uplink share: from a client's packet to its backend.
//!
//! Every node holds the same ring and the hash leaves the node out, so the answer does not depend
//! on where the client's packet came in, and no state is kept here.

use crate::{
    Tables,
    abi::{Backend, NO_ALTERNATE, Slot},
    hash,
    packet::{Ipv4, MacWords, Packet, addressed, frontend_index, mac_words},
};

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'t> {
    /// Service that the frontend stands for.
    pub service: u16,
    /// Port that the task listens on, host order.
    pub target_port: u16,
    /// Hash of the client and the service.
    pub hash: u32,
    /// The slot of the service's ring.
    pub slot: Slot,
    /// The slot's backend.
    pub backend: &'t Backend,
}

/// Why there is no choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The port is not published, or the address is not one that serves frontends.
    Foreign,
    /// The service has no backend.
    NoBackend,
}

/// Chooses the backend of a packet.
///
/// The table that tells most packets apart is asked first, and it is the cheapest.
///
/// # Errors
/// [`Miss`], with the packet untouched.
#[inline(always)] // as a call, the result would have to go through the stack
pub fn choose<'t, T: Tables>(ip: &Ipv4<'_>, tables: &'t T) -> Result<Choice<'t>, Miss> {
    let index = frontend_index(ip.protocol, ip.destination_port());
    let frontend = tables.frontend(index).ok_or(Miss::Foreign)?;
    let service = frontend.service;
    let target_port = frontend.target_port;
    if service == 0 || !tables.serves(&ip.destination()) {
        return Err(Miss::Foreign);
    }
    let hash = hash::hash(&ip.source(), ip.source_port(), service);
    let slot = tables.slot(service, hash::slot(hash)).ok_or(Miss::NoBackend)?;
    // Number 0, an empty ring's, is never taken: its entry is free like that of one who left.
    let backend = tables.backend(slot.backend).ok_or(Miss::NoBackend)?;
    if backend.node == 0 {
        return Err(Miss::NoBackend);
    }
    Ok(Choice { service, target_port, hash, slot, backend })
}

/// The MAC that names the slot's alternate on the way to its backend.
#[inline(always)]
pub(crate) fn alternate_mac<T: Tables>(slot: Slot, tables: &T) -> MacWords {
    if slot.alternate == 0 {
        return mac_words(&NO_ALTERNATE);
    }
    match tables.backend(slot.alternate) {
        Some(backend) if backend.node != 0 => mac_words(&backend.mac),
        _ => mac_words(&NO_ALTERNATE),
    }
}

/// Whether what cannot be carried was meant for a frontend of this node.
#[inline(always)]
pub(crate) fn is_for_frontend<P: Packet, T: Tables>(packet: &P, tables: &T) -> bool {
    let Some((protocol, port, address)) = addressed(packet) else {
        return false;
    };
    tables.frontend(frontend_index(protocol, port)).is_some_and(|f| f.service != 0)
        && tables.serves(&address)
}
