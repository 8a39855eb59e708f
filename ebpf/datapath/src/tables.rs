//! The tables that a packet is looked up in: maps in the kernel, collections in the test bed.

use crate::{
    Reason,
    abi::{
        Address, Backend, Config, Counter, Endpoint, EndpointKey, Flow, FlowKey, Frontend, Node,
        Slot,
    },
};

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who asked.
    Client,
    /// Who answers.
    Task,
}

/// What the datapath may ask of a node's tables; none of it blocks or fails half-way.
pub trait Tables {
    /// What this node's programs know about themselves; `None` before the first start.
    fn config(&self) -> Option<&Config>;

    /// The frontend under `protocol index << 16 | port`.
    fn frontend(&self, index: u32) -> Option<&Frontend>;

    /// Whether the address is this node's and serves frontends.
    fn serves(&self, address: &Address) -> bool;

    /// Slot `index` of the service's ring; `None` when the service has no ring.
    fn slot(&self, service: u16, index: usize) -> Option<Slot>;

    /// The backend of this number.
    fn backend(&self, number: u16) -> Option<&Backend>;

    /// The node of this number.
    fn node(&self, number: u16) -> Option<&Node>;

    /// Number of the node that has this data-path address.
    fn node_number(&self, address: &Address) -> Option<u32>;

    /// The local task of this MAC.
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint>;

    /// What was remembered of a flow; not to be looked at after [`Self::remember`].
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;

    /// Remembers a flow; false when there is no room.
    fn remember(&self, key: &FlowKey, flow: &Flow) -> bool;

    /// Notes in a remembered flow how one end ended it, and leaves the rest as it is.
    fn end(&self, key: &FlowKey, end: End, how: u8);

    /// Adds to a reason's counter.
    fn count(&self, reason: Reason, add: Counter);

    /// Adds to a service's counter.
    fn count_service(&self, service: u16, add: Counter);
}
