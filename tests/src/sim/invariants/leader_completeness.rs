//! If an entry is committed in a term, it is present in the logs of the leaders of all later terms.
//!
//! Source: Ongaro and Ousterhout 2014, figure 3, "Leader Completeness". Looked at when a manager
//! wins; with log matching the newest committed entry stands for all before it.

use super::{Event, Invariant};
use crate::sim::types::term_of;

/// Index and term of the newest committed entry.
#[derive(Default)]
pub(super) struct LeaderCompleteness(Option<(u64, u64)>);

impl Invariant for LeaderCompleteness {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Chosen { entry, .. } => {
                self.0 = Some((entry.log_id.index, term_of(&entry.log_id)));
                Ok(())
            }
            Event::Leads { raft_id, term, term_at } => {
                let Some((index, committed)) = self.0.filter(|(_, of)| of < term) else {
                    return Ok(());
                };
                match term_at(index) {
                    None => Ok(()),
                    Some(Some(has)) if has == committed => Ok(()),
                    Some(has) => Err(format!(
                        "{raft_id} leads in term {term} with {has:?} at {index}, which was \
                         committed in term {committed}"
                    )),
                }
            }
            _ => Ok(()),
        }
    }
}
