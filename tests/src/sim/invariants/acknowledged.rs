//! A write that was acknowledged is in the log, at its place, for ever.
//!
//! Source: issue "Cluster life cycle", durability: "every acknowledged write survives". A write may
//! be acknowledged only when it is committed, and what is committed never changes (state machine
//! safety); once all is healed, every manager's store is as new as the newest acknowledged write.

use std::collections::BTreeMap;

use super::{Event, Invariant};
use crate::sim::types::term_of;

/// What was committed, and the newest index that a caller was told of.
#[derive(Default)]
pub(super) struct Acknowledged {
    committed: BTreeMap<u64, u64>,
    newest: u64,
}

impl Invariant for Acknowledged {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Chosen { entry, .. } => {
                self.committed.insert(entry.log_id.index, term_of(&entry.log_id));
                Ok(())
            }
            Event::Acknowledged { raft_id, term, index } => {
                self.newest = self.newest.max(*index);
                match self.committed.get(index) {
                    Some(of) if of == term => Ok(()),
                    has => Err(format!(
                        "{raft_id} acknowledged {index} of term {term}, committed is {has:?}"
                    )),
                }
            }
            Event::Restored { .. } => Ok(()),
            Event::Healed { raft_id, store } if store.index() < self.newest => {
                Err(format!("{raft_id} is at {}, {} was acknowledged", store.index(), self.newest))
            }
            _ => Ok(()),
        }
    }
}
