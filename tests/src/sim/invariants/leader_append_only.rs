//! A leader never overwrites or deletes entries in its log; it only appends.
//!
//! Source: Ongaro and Ousterhout 2014, figure 3, "Leader Append-Only". Beside it: nobody's log has
//! holes.

use super::{Event, Invariant};

/// Nothing to remember.
#[derive(Default)]
pub(super) struct LeaderAppendOnly;

impl Invariant for LeaderAppendOnly {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Truncated { raft_id, first_gone, leads: true } => {
                Err(format!("{raft_id} leads and throws entries from {first_gone} on away"))
            }
            Event::Appended { raft_id, entry, before: Some(before) }
                if entry.log_id.index != before.index + 1 =>
            {
                Err(format!("{raft_id} put {} after {before}", entry.log_id))
            }
            _ => Ok(()),
        }
    }
}
