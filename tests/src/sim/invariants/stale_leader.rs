//! A leader that was replaced writes nothing more: what is committed in a term was made by the loop
//! of that term's leader, and terms in the log only grow.
//!
//! Source: ARCHITECTURE.md, invariant 2 (the leader is the single writer); Ongaro and Ousterhout
//! 2014, section 5.4.2 (a term's entries are its leader's).

use openraft::EntryPayload;

use super::{Event, Invariant};
use crate::sim::types::term_of;

/// Term of the newest committed entry.
#[derive(Default)]
pub(super) struct StaleLeader(u64);

impl Invariant for StaleLeader {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        let Event::Chosen { entry, .. } = event else { return Ok(()) };
        let term = term_of(&entry.log_id);
        let before = std::mem::replace(&mut self.0, term);
        if term < before {
            return Err(format!("{} follows an entry of term {before}", entry.log_id));
        }
        match &entry.payload {
            EntryPayload::Normal(proposal) if proposal.term != term => Err(format!(
                "{} was made by the leader's loop of term {}",
                entry.log_id, proposal.term
            )),
            _ => Ok(()),
        }
    }
}
