//! At most one leader can be elected in a term.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", USENIX ATC
//! 2014, figure 3, "Election Safety". Seen when a manager stores that it won, and again when it
//! acts as a leader.

use std::collections::BTreeMap;

use super::{Event, Invariant, once};

/// The leader of each term.
#[derive(Default)]
pub(super) struct ElectionSafety(BTreeMap<u64, u64>);

impl Invariant for ElectionSafety {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        let (Event::Leads { raft_id, term, .. } | Event::Acted { raft_id, term }) = event else {
            return Ok(());
        };
        let told = once(&mut self.0, *term, *raft_id);
        told.map_err(|(first, second)| format!("{first} and {second} both lead in term {term}"))
    }
}
