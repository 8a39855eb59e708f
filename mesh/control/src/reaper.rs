//! Takes away what is over: old tasks beyond the history, removed tasks, removed services.
//!
//! A task that is to be removed goes once its node says that it ended; one that no node has yet, or
//! whose node is down or gone, goes at once: a node that comes back gets a complete set without it
//! and stops what it still runs. Its address is free from then on. So one that took packets goes only
//! when no ready node's kernel sends any there, or they would meet its successor.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_api::time::Timestamp;
use shoal_api::{ClusterSpec, Kind, NodeState, TASK_HISTORY, Task, TaskState};

use crate::draft::{Draft, Touched, services_of};
use crate::replicated::{age_key, is_stopped, is_wanted};
use crate::store::Store;

/// How soon it is looked again whether the nodes have forgotten a task: not every index that they
/// hold comes with an input.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a task waits for a ready node that does not forget it. Such a node is broken, and what
/// ended meanwhile must not pile up for it.
const FORGET_TIMEOUT: Duration = Duration::from_secs(60);

/// Takes away what is over.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    dirty: BTreeSet<String>,
    /// Services with tasks that some node has not forgotten yet.
    waiting: BTreeSet<String>,
    look_at: Option<Timestamp>,
    settled: u64,
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

    /// When to look again whether the nodes have forgotten what waits for them.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.look_at
    }

    /// * `settled` - Raft index that every ready node's kernel holds.
    pub(crate) fn step(&mut self, draft: &mut Draft<'_>, news: &BTreeSet<Touched>, settled: u64) {
        if settled > self.settled || self.look_at.is_some_and(|at| at <= draft.now()) {
            self.dirty.append(&mut self.waiting);
        }
        self.settled = settled;
        if news.contains(&Touched::Other) && self.history != history(draft) {
            self.reset(draft);
        }
        self.dirty.extend(services_of(draft, news));
        for id in std::mem::take(&mut self.dirty) {
            for task_id in over(draft, &id, self.history) {
                if !is_forgotten(draft, &task_id, settled) {
                    self.waiting.insert(id.clone());
                } else if draft.has_room() {
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
        self.look_at = (!self.waiting.is_empty()).then(|| draft.now() + LOOK_AGAIN);
    }
}

/// Whether no ready node sends packets to the task any more, as far as one can know.
fn is_forgotten(draft: &Draft<'_>, id: &str, settled: u64) -> bool {
    let store = draft.committed();
    // The nodes know what is committed, and send nothing to a task before it runs.
    let Some(task) = store.task(id).filter(|task| task.state() >= TaskState::Assigned) else {
        return true;
    };
    if task.attachments.is_empty() {
        return true;
    }
    let updated = task.meta.as_ref().map_or(0, |meta| meta.updated_at_ns);
    stopped_at(store, task).is_some_and(|index| index <= settled)
        || Timestamp(updated) + FORGET_TIMEOUT <= draft.now()
}

/// Raft index by which the routes lack the task; `None` while they may have it.
fn stopped_at(store: &Store, task: &Task) -> Option<u64> {
    if task.state().is_terminal() {
        return Some(task.version());
    }
    let node = store.node(&task.node_id).filter(|node| node.state() == NodeState::Down)?;
    Some(task.version().max(node.version()))
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
