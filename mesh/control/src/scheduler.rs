//! Chooses a node for every pending task.
//!
//! A task passes here once; after `ASSIGNED` the choice is final and a lost node means a new task.
//!
//! 1. Filters drop the nodes that cannot run the task and keep the reason for the user.
//! 2. Fewest tasks of the service wins, then fewest tasks, then node id: one view, one answer.
//!
//! A task that fits nowhere stays `PENDING`, says why, and is tried again when a node changes.
//! Source: `SwarmKit`, design/scheduler.md, "Scheduling algorithm".

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{NodeAvailability, NodeState, TaskState, TaskStatus};

use crate::draft::{Draft, Touched};
use crate::replicated::is_wanted;
use crate::store::Store;

/// Chooses a node for every pending task.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    pending: BTreeSet<String>,
    retry: bool,
}

impl Scheduler {
    pub(crate) fn reset(&mut self, store: &Store) {
        let pending = store.tasks().filter(|task| task.state() == TaskState::Pending);
        self.pending = pending.map(|task| task.id.clone()).collect();
        self.retry = true;
    }

    pub(crate) fn step(&mut self, draft: &mut Draft<'_>, news: &BTreeSet<Touched>) {
        for touched in news {
            match touched {
                Touched::Task { id, .. } => {
                    let task = draft.task(id);
                    if task.is_some_and(|task| task.state() == TaskState::Pending) {
                        self.retry |= self.pending.insert(id.clone());
                    }
                }
                Touched::Node(_) => self.retry = true,
                Touched::Service(_) | Touched::Other => {}
            }
        }
        if std::mem::take(&mut self.retry) && !self.pending.is_empty() {
            self.place(draft);
        }
    }

    fn place(&mut self, draft: &mut Draft<'_>) {
        let pending = self.pending.iter().filter_map(|id| draft.task(id).cloned());
        let mut pending: Vec<_> =
            pending.filter(|task| task.state() == TaskState::Pending && is_wanted(task)).collect();
        pending.sort_by(|a, b| (&a.service_id, a.slot, &a.id).cmp(&(&b.service_id, b.slot, &b.id)));
        self.pending.clear();
        let mut nodes = Nodes::of(draft);
        for task in pending {
            // A batch that is full is followed by a full pass, which finds it again.
            if !draft.has_room_for(&task.id) {
                self.pending.insert(task.id.clone());
                continue;
            }
            let status = |state: TaskState, message: &str, err: String| TaskStatus {
                state: state.into(),
                timestamp_ns: draft.now().nanos(),
                message: message.into(),
                err,
                ..TaskStatus::default()
            };
            if let Some(node_id) = nodes.choose(&task.service_id) {
                let assigned = "scheduler assigned task to node";
                let status = status(TaskState::Assigned, assigned, String::new());
                draft.edit_task(&task.id, |task| {
                    task.node_id = node_id;
                    task.status = Some(status);
                });
            } else {
                self.pending.insert(task.id.clone());
                let err = nodes.explain();
                if task.status.as_ref().is_none_or(|status| status.err != err) {
                    let status = status(TaskState::Pending, "pending task scheduling", err);
                    draft.edit_task(&task.id, |task| task.status = Some(status));
                }
            }
        }
    }
}

/// The nodes that may take tasks, and how many they have.
struct Nodes {
    /// All tasks, and tasks by service id, of each node by id.
    load: BTreeMap<String, (u64, BTreeMap<String, u64>)>,
    unavailable: usize,
}

impl Nodes {
    fn of(store: &Store) -> Self {
        let mut nodes = Self { load: BTreeMap::new(), unavailable: 0 };
        for node in store.nodes() {
            let ready = node.state() == NodeState::Ready;
            if !ready || node.availability() != NodeAvailability::Active {
                nodes.unavailable += 1;
                continue;
            }
            let mut by_service: BTreeMap<String, u64> = BTreeMap::new();
            let mut all = 0;
            for task in store.tasks_of_node(&node.id) {
                if is_wanted(task) && !task.state().is_terminal() {
                    all += 1;
                    *by_service.entry(task.service_id.clone()).or_default() += 1;
                }
            }
            nodes.load.insert(node.id.clone(), (all, by_service));
        }
        nodes
    }

    /// The best node for a task of the service, which counts there from now on.
    fn choose(&mut self, service_id: &str) -> Option<String> {
        let of_service =
            |by_service: &BTreeMap<String, u64>| by_service.get(service_id).copied().unwrap_or(0);
        let (id, (all, by_service)) = self
            .load
            .iter_mut()
            .min_by_key(|(id, (all, by_service))| (of_service(by_service), *all, (*id).clone()))?;
        *all += 1;
        *by_service.entry(service_id.to_owned()).or_default() += 1;
        Some(id.clone())
    }

    /// Why no node was chosen, in Docker's words (swarm.md T6).
    fn explain(&self) -> String {
        match self.unavailable {
            0 => "no suitable node".into(),
            1 => "no suitable node (1 node not available for new tasks)".into(),
            n => format!("no suitable node ({n} nodes not available for new tasks)"),
        }
    }
}
