//! If two logs contain an entry with the same index and term, then the logs are identical in all
//! entries up through the given index.
//!
//! Source: Ongaro and Ousterhout 2014, figure 3, "Log Matching". By induction it is enough that an
//! index and a term stand for one content and one predecessor, whoever appends it.

use std::collections::BTreeMap;

use super::{Event, Invariant, once};
use crate::sim::trace::fnv;
use crate::sim::types::{encode, term_of};

/// By index and term: the content's hash and the term of the entry before.
#[derive(Default)]
pub(super) struct LogMatching {
    contents: BTreeMap<(u64, u64), u64>,
    before: BTreeMap<(u64, u64), u64>,
}

impl Invariant for LogMatching {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        let Event::Appended { raft_id, entry, before } = event else { return Ok(()) };
        let key = (entry.log_id.index, term_of(&entry.log_id));
        let bytes = encode(entry).map_err(|e| e.to_string())?;
        once(&mut self.contents, key, fnv(&bytes))
            .map_err(|_| format!("{raft_id} appended another {} than was known", entry.log_id))?;
        let Some(before) = before else { return Ok(()) };
        once(&mut self.before, key, term_of(before)).map_err(|(first, second)| {
            format!("{raft_id}: {} follows an entry of term {first} and {second}", entry.log_id)
        })
    }
}
