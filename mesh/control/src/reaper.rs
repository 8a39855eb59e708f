//! Takes away what is over: old tasks beyond the history, removed tasks, removed services.
//!
//! A task that is to be removed goes once its node says that it ended; one that no node has yet, or
//! whose node is down or gone, goes at once: a node that comes back gets a complete set without it
//! and stops what it still runs. Its address is free from then on.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{ClusterSpec, Kind, TASK_HISTORY, TaskState};

use crate::draft::{Draft, Touched, services_of};
use crate::replicated::{age_key, is_stopped, is_wanted};
use crate::store::Store;

/// Takes away what is over.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    dirty: BTreeSet<String>,
    /// Ended tasks that each slot keeps, for the user to see what happened (swarm.md T5); `None`
    /// keeps all.
    history: Option<usize>,
}

impl Reaper {
    pub(crate) fn reset(&mut self, store: &Store) {
        self.history = history(store);
        let services = store.services().map(|service| service.id.clone());
        self.dirty = services.chain(store.tasks().map(|task| task.service_id.clone())).collect();
    }

    /// Whether services are left that did not fit in the batch.
    pub(crate) fn has_more(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn step(&mut self, draft: &mut Draft<'_>, news: &BTreeSet<Touched>) {
        if news.contains(&Touched::Other) && self.history != history(draft) {
            self.reset(draft);
        }
        self.dirty.extend(services_of(draft, news));
        for id in std::mem::take(&mut self.dirty) {
            for task_id in over(draft, &id, self.history) {
                if draft.has_room() {
                    draft.remove(Kind::Task, &task_id);
                } else {
                    self.dirty.insert(id.clone());
                }
            }
            let removed = draft.service(&id).is_some_and(|service| service.pending_delete);
            if removed && draft.tasks_of_service(&id).next().is_none() {
                draft.remove(Kind::Service, &id);
            }
        }
    }
}

/// What the cluster's spec says.
fn history(store: &Store) -> Option<usize> {
    let spec = store.cluster().and_then(|cluster| cluster.spec.as_ref());
    spec.map_or(Some(TASK_HISTORY), ClusterSpec::task_history)
}

/// The tasks of a service that are over.
///
/// * `keep` - ended tasks per slot; a slot that nothing fills any more keeps its last one, which
///   tells that it is finished.
fn over(store: &Store, service_id: &str, keep: Option<usize>) -> Vec<String> {
    let gone = store.service(service_id).is_none();
    let mut over = Vec::new();
    let mut history: BTreeMap<u64, Vec<(u64, String)>> = BTreeMap::new();
    let mut filled = BTreeSet::new();
    for task in store.tasks_of_service(service_id) {
        let removed = gone || task.desired_state() >= TaskState::Remove;
        let never_ran = !is_wanted(task) && task.state() < TaskState::Assigned;
        if never_ran || (removed && is_stopped(store, task)) {
            over.push(task.id.clone());
        } else if !is_wanted(task) && task.state().is_terminal() {
            history.entry(task.slot).or_default().push(age_key(task));
        } else if is_wanted(task) {
            filled.insert(task.slot);
        }
    }
    let Some(keep) = keep else { return over };
    for (slot, mut ended) in history {
        ended.sort();
        let keep = if filled.contains(&slot) { keep } else { keep.max(1) };
        let oldest = ended.len().saturating_sub(keep);
        over.extend(ended.into_iter().take(oldest).map(|(_, id)| id));
    }
    over
}
