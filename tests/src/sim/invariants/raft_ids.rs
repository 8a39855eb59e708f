//! A raft id stands for one manager on one disk, for ever: it is never given twice, and never comes
//! back once it has left.
//!
//! Source: issue "Cluster life cycle", membership: "a raft id is never used twice"; a manager that
//! came back empty under its old id would vote twice in a term (Ongaro, PhD thesis, 2014, chapter
//! 11, "loses its disk").

use std::collections::{BTreeMap, BTreeSet};

use openraft::EntryPayload;

use super::{Event, Invariant, once};

/// Who has each id, who is a member now, and who was.
#[derive(Default)]
pub(super) struct RaftIds {
    holders: BTreeMap<u64, String>,
    nodes: BTreeMap<u64, String>,
    members: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    cursor: u64,
}

impl Invariant for RaftIds {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        let Event::Chosen { entry, store, .. } = event else { return Ok(()) };
        for node in store.nodes() {
            let Some(manager) = &node.manager else { continue };
            once(&mut self.nodes, manager.raft_id, node.id.clone()).map_err(
                |(first, second)| {
                    format!("raft id {} is given to {first} and {second}", manager.raft_id)
                },
            )?;
        }
        let cursor = store.cluster().and_then(|cluster| cluster.last).map_or(0, |l| l.raft_id);
        let before = std::mem::replace(&mut self.cursor, cursor);
        if cursor < before {
            return Err(format!("the newest raft id went from {before} back to {cursor}"));
        }
        let EntryPayload::Membership(membership) = &entry.payload else { return Ok(()) };
        for (id, peer) in membership.nodes() {
            once(&mut self.holders, *id, peer.addr.clone())
                .map_err(|(first, second)| format!("raft id {id} is at {first} and {second}"))?;
        }
        let members: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
        let back: Vec<_> = members.intersection(&self.gone).copied().collect();
        self.gone.extend(self.members.difference(&members));
        self.members = members;
        if back.is_empty() { Ok(()) } else { Err(format!("raft ids {back:?} came back")) }
    }
}
