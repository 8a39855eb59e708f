//! Everything that one node's kernel must hold.
//!
//! [`State`] takes the assignments that came down the dispatcher's stream; [`Plan`] is the tables
//! that follow from it. Rings are computed for services whose backends changed only.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use shoal_api::{AssignmentChange, BackendState, RouteBackend, RouteNode, RouteService};
use shoal_datapath::abi::{Address, Backend, Frontend, Slot};

/// The tables of one node, without what only the node itself knows (interfaces, next hops).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Raft index that this plan stands for.
    pub index: u64,
    /// This node's number; 0 until the managers gave it one.
    pub node: u16,
    /// By `protocol index << 16 | port` ([`shoal_datapath::abi::FRONTENDS_MAX`]).
    pub frontends: BTreeMap<u32, Frontend>,
    /// By service number. Shared, since a ring is 64 KiB and most plans keep most rings.
    pub rings: BTreeMap<u16, Arc<Vec<Slot>>>,
    /// By backend number.
    pub backends: BTreeMap<u16, Backend>,
    /// Data-path address by node number.
    pub nodes: BTreeMap<u16, Address>,
}
