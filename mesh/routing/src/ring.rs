//! A service's Maglev table.
//!
//! Every node computes the same ring from the same backends, so a client whose packets move to
//! another ingress node keeps its backend. Source: Eisenbud et al., "Maglev", NSDI 2016, section
//! 3.4.

use shoal_datapath::abi::{RING_SIZE, Slot};

/// A backend as the ring sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Backend number, not 0.
    pub number: u16,
    /// Whether the backend takes new flows; a draining one is only an alternate.
    pub active: bool,
}

/// Fills a ring with [`RING_SIZE`] slots.
///
/// * `members` - the service's backends in any order; each number once.
/// * `seed` - the cluster's seed mixed with the service's number.
///
/// Each slot names an active backend and, where a draining one would own the slot if it were still
/// active, that one as the alternate. Active backends own `floor(M/N)` or `ceil(M/N)` slots. No
/// active backend: all slots are zero.
#[must_use]
pub fn ring(members: &[Member], seed: u64) -> Vec<Slot> {
    let _ = (members, seed);
    vec![Slot::default(); RING_SIZE]
}
