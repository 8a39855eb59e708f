//! If a manager has applied an entry at an index, no other ever applies another one there, and equal
//! entries give equal stores.
//!
//! Source: Ongaro and Ousterhout 2014, figure 3, "State Machine Safety"; and ARCHITECTURE.md,
//! invariant 3, for the stores. Each manager applies in order, without holes.

use std::collections::BTreeMap;

use prost::Message;
use shoal_control::Store;

use super::{Event, Invariant, once};
use crate::sim::trace::fnv;
use crate::sim::types::{encode, term_of};

/// By index: term and hash of what was applied, and the store's hash, where one was seen.
#[derive(Default)]
pub(super) struct StateMachineSafety {
    entries: BTreeMap<u64, (u64, u64)>,
    stores: BTreeMap<u64, u64>,
    /// Index of the newest object, so that a store can be compared with that of another index.
    healed: Option<(u64, u64)>,
}

fn hash(store: &Store) -> u64 {
    fnv(&store.snapshot().encode_to_vec())
}

impl Invariant for StateMachineSafety {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Applied { raft_id, before, entry, conflict } => {
                let index = entry.log_id.index;
                let bytes = encode(*entry).map_err(|e| e.to_string())?;
                let applied = (term_of(&entry.log_id), fnv(&bytes));
                once(&mut self.entries, index, applied)
                    .map_err(|_| format!("{raft_id} applied another entry at {index}"))?;
                if before.is_some_and(|before| before.index + 1 != index) {
                    return Err(format!("{raft_id} applied {index} after {before:?}"));
                }
                match conflict {
                    None => Ok(()),
                    Some(conflict) => Err(format!("the store refused {index}: {conflict}")),
                }
            }
            Event::Restored { raft_id, meta, store } => {
                let Some(last) = meta.last_log_id else { return Ok(()) };
                let known = self.entries.get(&last.index).map(|(term, _)| *term);
                if known.is_some_and(|term| term != term_of(&last)) {
                    return Err(format!("{raft_id} took a snapshot up to {last}, not {known:?}"));
                }
                once(&mut self.stores, last.index, hash(store))
                    .map_err(|_| format!("{raft_id} has another store at {}", last.index))
            }
            Event::Healed { raft_id, store } => {
                let is = (store.index(), hash(store));
                let first = *self.healed.get_or_insert(is);
                if first == is {
                    return Ok(());
                }
                Err(format!("{raft_id} has {is:?} where another manager has {first:?}"))
            }
            _ => Ok(()),
        }
    }
}
