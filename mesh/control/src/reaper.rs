//! Takes away what is over: old tasks beyond the history, removed tasks, removed services.
//!
//! A task that is to be removed goes once its node says that it ended; one that no node has yet, or
//! whose node is down or gone, goes at once: a node that comes back gets a complete set without it
//! and stops what it still runs. Its address is free from then on.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{Kind, TaskState};

use crate::draft::{Draft, Touched, services_of};
use crate::replicated::{age_key, is_stopped, is_wanted};
use crate::store::Store;

/// Ended tasks that are kept per slot, for the user to see what happened (swarm.md T5).
const HISTORY: usize = 5;

/// Takes away what is over.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    dirty: BTreeSet<String>,
}

impl Reaper {
    pub(crate) fn reset(&mut self, store: &Store) {
        let services = store.services().map(|service| service.id.clone());
        self.dirty = services.chain(store.tasks().map(|task| task.service_id.clone())).collect();
    }

    /// Whether services are left that did not fit in the batch.
    pub(crate) fn has_more(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn step(&mut self, draft: &mut Draft<'_>, news: &BTreeSet<Touched>) {
        self.dirty.extend(services_of(draft, news));
        for id in std::mem::take(&mut self.dirty) {
            for task_id in over(draft, &id) {
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

/// The tasks of a service that are over.
fn over(store: &Store, service_id: &str) -> Vec<String> {
    let gone = store.service(service_id).is_none();
    let mut over = Vec::new();
    let mut history: BTreeMap<u64, Vec<(u64, String)>> = BTreeMap::new();
    for task in store.tasks_of_service(service_id) {
        let removed = gone || task.desired_state() >= TaskState::Remove;
        let never_ran = !is_wanted(task) && task.state() < TaskState::Assigned;
        if never_ran || (removed && is_stopped(store, task)) {
            over.push(task.id.clone());
        } else if !is_wanted(task) && task.state().is_terminal() {
            history.entry(task.slot).or_default().push(age_key(task));
        }
    }
    for mut ended in history.into_values() {
        ended.sort();
        let oldest = ended.len().saturating_sub(HISTORY);
        over.extend(ended.into_iter().take(oldest).map(|(_, id)| id));
    }
    over
}
