//! Gives up the tasks of nodes that will not come back with them: removed, or down for a day.

use std::collections::BTreeMap;

use shoal_api::{TaskState, TaskStatus};

use crate::draft::Draft;
use crate::store::Store;

/// The node was down for so long that it will not come back with its tasks.
pub(crate) const LONG_DOWN: &str = "the node was down for a day";
/// The node was removed.
pub(crate) const REMOVED: &str = "the node was removed";

/// Nodes whose tasks are to be given up, each with the reason.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    nodes: BTreeMap<String, &'static str>,
}

impl Orphans {
    /// Starts over: a leader may have gone before it was done with a removed node.
    pub(crate) fn reset(&mut self, store: &Store) {
        let running = store.tasks().filter(|task| !task.state().is_terminal());
        let placed = running.filter(|task| !task.node_id.is_empty());
        let lost = placed.filter(|task| store.node(&task.node_id).is_none());
        self.nodes = lost.map(|task| (task.node_id.clone(), REMOVED)).collect();
    }

    pub(crate) fn give_up(&mut self, node_id: &str, why: &'static str) {
        self.nodes.insert(node_id.to_owned(), why);
    }

    /// Whether nodes are left whose tasks did not fit in the batch.
    pub(crate) fn has_more(&self) -> bool {
        !self.nodes.is_empty()
    }

    pub(crate) fn step(&mut self, draft: &mut Draft<'_>) {
        while let Some((node_id, why)) = self.nodes.pop_first() {
            let running = draft.tasks_of_node(&node_id).filter(|task| !task.state().is_terminal());
            let running: Vec<_> = running.map(|task| task.id.clone()).collect();
            let status = TaskStatus {
                state: TaskState::Orphaned.into(),
                timestamp_ns: draft.now().nanos(),
                message: "orphaned".into(),
                err: why.into(),
                ..TaskStatus::default()
            };
            for id in running {
                if !draft.has_room_for(&id) {
                    self.nodes.insert(node_id, why);
                    return;
                }
                draft.edit_task(&id, |task| task.status = Some(status.clone()));
            }
        }
    }
}
