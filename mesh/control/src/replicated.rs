//! Keeps each service's slots filled: the replicated orchestrator.
//!
//! 1. A slot is filled by its one task whose desired state is at most `RUNNING`. A task that ended
//!    is replaced in its slot as the restart policy says, after its delay; one that may not be
//!    restarted leaves its slot filled as it is.
//! 2. A task on a node that is down, drained or gone is replaced at once.
//! 3. Too few slots: the lowest free ones get a task. Too many: first those that do not run, then
//!    those on the nodes with most tasks of the service, then the highest.
//! 4. A task of an older task spec is replaced, one slot at a time, the new one starting when the
//!    old one stopped; the next slot's turn comes when it runs. Update options come later.
//! 5. A service that is being removed only has tasks to remove.
//!
//! Source: `SwarmKit`, manager/orchestrator/{replicated,restart}.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_api::id::IdSource;
use shoal_api::time::Timestamp;
use shoal_api::{
    NodeAvailability, NodeState, RestartCondition, RestartPolicy, Service, Task, TaskState,
    TaskStatus,
};

use crate::draft::{Draft, Touched, services_of};
use crate::store::Store;

/// How long a replacement waits for the task before it to stop (swarm.md S7).
const OLD_TASK_TIMEOUT: Duration = Duration::from_secs(60);

/// Keeps each service's slots filled.
#[derive(Debug, Default)]
pub(crate) struct Replicated {
    dirty: BTreeSet<String>,
    /// When a service must be looked at again.
    deadlines: BTreeMap<String, Timestamp>,
}

impl Replicated {
    pub(crate) fn reset(&mut self, store: &Store) {
        self.dirty = store.services().map(|service| service.id.clone()).collect();
        self.deadlines.clear();
    }

    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.deadlines.values().min().copied()
    }

    /// Whether services are left that did not fit in the batch.
    pub(crate) fn has_more(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn step(
        &mut self,
        draft: &mut Draft<'_>,
        news: &BTreeSet<Touched>,
        ids: &mut IdSource,
    ) {
        let now = draft.now();
        self.dirty.extend(services_of(draft, news));
        let due = self.deadlines.iter().filter(|(_, at)| **at <= now);
        self.dirty.extend(due.map(|(id, _)| id.clone()));
        for id in std::mem::take(&mut self.dirty) {
            let Some(service) = draft.service(&id).cloned() else {
                self.deadlines.remove(&id);
                continue;
            };
            let mut turn = Turn { draft, ids, service: &service, again: None, cut: false };
            turn.reconcile();
            let (again, cut) = (turn.again, turn.cut);
            match again {
                Some(at) => self.deadlines.insert(id.clone(), at),
                None => self.deadlines.remove(&id),
            };
            if cut {
                self.dirty.insert(id);
            }
        }
    }
}

/// One look at one service.
struct Turn<'t, 'd> {
    draft: &'t mut Draft<'d>,
    ids: &'t mut IdSource,
    service: &'t Service,
    /// When the next look is due.
    again: Option<Timestamp>,
    /// The batch was full before all was done.
    cut: bool,
}

/// How a new task comes into its slot.
enum Entry {
    /// It starts as soon as it can.
    AtOnce,
    /// It is prepared, and starts when the delay is over and the task before it stopped.
    After(Duration),
}

impl Turn<'_, '_> {
    fn reconcile(&mut self) {
        let tasks = self.draft.tasks_of_service(&self.service.id).cloned();
        let mut slots: BTreeMap<u64, Vec<Arc<Task>>> = BTreeMap::new();
        for task in tasks {
            slots.entry(task.slot).or_default().push(task);
        }
        if self.service.pending_delete {
            for task in slots.values().flatten() {
                self.want(task, TaskState::Remove);
            }
            return;
        }
        let filled: BTreeSet<u64> = slots
            .iter()
            .filter(|(_, tasks)| self.keep_filled(tasks))
            .map(|(slot, _)| *slot)
            .collect();
        let replicas = self.service.spec.as_ref().map_or(0, |spec| spec.replicas);
        let have = u64::try_from(filled.len()).expect("a length fits in 64 bits");
        if have < replicas {
            let free = (1..).filter(|slot| !filled.contains(slot));
            for slot in free.take(usize::try_from(replicas - have).unwrap_or(usize::MAX)) {
                if self.is_full() {
                    return;
                }
                self.create(slot, &Entry::AtOnce);
            }
        } else if have > replicas {
            self.remove_surplus(&filled, have - replicas);
        }
        self.update();
    }

    /// Does what one slot needs, and says whether it is filled.
    fn keep_filled(&mut self, tasks: &[Arc<Task>]) -> bool {
        let mut live: Vec<_> = tasks.iter().filter(|task| is_wanted(task)).collect();
        // There is one; where there are more, the one that runs and is newest stays.
        live.sort_by_key(|task| (task.state() == TaskState::Running, age_key(task)));
        let Some(task) = live.pop() else {
            let newest = tasks.iter().max_by_key(|task| age_key(task));
            return newest.is_some_and(|task| self.is_finished(task));
        };
        for extra in live {
            self.want(extra, TaskState::Shutdown);
        }
        let lost = task.state() >= TaskState::Assigned && is_lost(self.draft, task);
        if lost {
            self.replace(task, &Entry::AtOnce);
        } else if task.state().is_terminal() {
            let start_after = Timestamp(task.start_after_ns);
            if task.desired_state() == TaskState::Ready && start_after > self.draft.now() {
                // It never came to its start: what is wrong with it would end the next one as fast,
                // and one delay follows another.
                self.look_again(start_after);
            } else if restarts(&self.policy(), task.state()) {
                self.replace(task, &Entry::After(self.policy().delay()));
            } else {
                self.want(task, TaskState::Shutdown);
            }
        } else if task.desired_state() == TaskState::Ready {
            self.let_start(task, tasks);
        }
        true
    }

    /// Whether a slot's last task ended for good: it was of this spec and may not be restarted.
    fn is_finished(&self, task: &Task) -> bool {
        let ended =
            [TaskState::Complete, TaskState::Failed, TaskState::Rejected].contains(&task.state());
        ended
            && task.desired_state() == TaskState::Shutdown
            && task.spec_version == self.service.spec_version
            && !restarts(&self.policy(), task.state())
    }

    /// Lets a prepared task start when its delay is over and the others of its slot stopped.
    fn let_start(&mut self, task: &Task, slot: &[Arc<Task>]) {
        let now = self.draft.now();
        let mut at = Timestamp(task.start_after_ns);
        for other in slot.iter().filter(|other| other.id != task.id) {
            if !is_stopped(self.draft, other) {
                // It was told to stop when it was written last, or in this very step.
                let before = self.draft.committed().task(&other.id);
                let told = before.filter(|before| !is_wanted(before)).and(other.meta);
                let told = told.map_or(now, |meta| Timestamp(meta.updated_at_ns));
                at = at.max(told + OLD_TASK_TIMEOUT);
            }
        }
        if at <= now {
            self.want(task, TaskState::Running);
        } else {
            self.look_again(at);
        }
    }

    fn remove_surplus(&mut self, filled: &BTreeSet<u64>, surplus: u64) {
        let mut on_node: BTreeMap<String, u64> = BTreeMap::new();
        let mut candidates: BTreeMap<u64, (u8, String)> =
            filled.iter().map(|slot| (*slot, (0, String::new()))).collect();
        let tasks: Vec<_> = self.draft.tasks_of_service(&self.service.id).cloned().collect();
        for task in tasks.iter().filter(|task| is_wanted(task)) {
            let loss = match task.state() {
                TaskState::Running => 2,
                state if state >= TaskState::Assigned => 1,
                _ => 0,
            };
            candidates.insert(task.slot, (loss, task.node_id.clone()));
            *on_node.entry(task.node_id.clone()).or_default() += 1;
        }
        for _ in 0..surplus {
            if self.is_full() {
                return;
            }
            let tasks_on = |node| on_node.get(node).copied().unwrap_or(0);
            let worst = candidates
                .iter()
                .max_by_key(|(slot, (loss, node))| (Reverse(*loss), tasks_on(node), **slot));
            let Some((slot, (_, node))) = worst.map(|(slot, at)| (*slot, at.clone())) else {
                return;
            };
            candidates.remove(&slot);
            if let Some(count) = on_node.get_mut(&node) {
                *count = count.saturating_sub(1);
            }
            // The one that fills the slot goes last: where the batch ends before, the slot is still
            // filled and its turn comes again.
            let of_slot = tasks.iter().filter(|task| task.slot == slot);
            let (live, old): (Vec<_>, Vec<_>) = of_slot.partition(|task| is_wanted(task));
            for task in old.into_iter().chain(live) {
                self.want(task, TaskState::Remove);
            }
        }
    }

    /// Replaces tasks of an older spec.
    fn update(&mut self) {
        let tasks = self.draft.tasks_of_service(&self.service.id).filter(|task| is_wanted(task));
        let live: Vec<_> = tasks.cloned().collect();
        let (old, new): (Vec<_>, Vec<_>) =
            live.into_iter().partition(|task| task.spec_version != self.service.spec_version);
        let (unassigned, old): (Vec<_>, Vec<_>) =
            old.into_iter().partition(|task| task.state() < TaskState::Assigned);
        // Nothing has to stop for these.
        for task in unassigned {
            self.replace(&task, &Entry::AtOnce);
        }
        if new.iter().any(|task| task.state() < TaskState::Running) {
            return;
        }
        let next = old.iter().min_by_key(|task| (task.state() == TaskState::Running, task.slot));
        if let Some(task) = next {
            self.replace(task, &Entry::After(Duration::ZERO));
        }
    }

    /// Ends a task and puts a new one in its slot: both or, where the batch is full, neither.
    fn replace(&mut self, task: &Task, entry: &Entry) {
        if !self.is_full() {
            self.want(task, TaskState::Shutdown);
            self.create(task.slot, entry);
        }
    }

    fn create(&mut self, slot: u64, entry: &Entry) {
        let now = self.draft.now();
        let (desired, start_after_ns) = match entry {
            Entry::AtOnce => (TaskState::Running, 0),
            Entry::After(delay) => {
                self.look_again(now + *delay);
                (TaskState::Ready, (now + *delay).nanos())
            }
        };
        let status = TaskStatus {
            state: TaskState::New.into(),
            timestamp_ns: now.nanos(),
            message: "created".into(),
            ..TaskStatus::default()
        };
        let task = Task {
            id: self.draft.fresh_id(self.ids),
            spec: self.service.spec.as_ref().and_then(|spec| spec.task.clone()),
            ports: self.service.ports.clone(),
            service_id: self.service.id.clone(),
            service_name: self.service.name().to_owned(),
            slot,
            status: Some(status),
            desired_state: desired.into(),
            spec_version: self.service.spec_version,
            start_after_ns,
            ..Task::default()
        };
        self.draft.put(task);
    }

    /// Raises a task's desired state.
    fn want(&mut self, task: &Task, desired: TaskState) {
        if task.desired_state() < desired && !self.is_full() {
            self.draft.edit_task(&task.id, |task| task.set_desired_state(desired));
        }
    }

    fn is_full(&mut self) -> bool {
        self.cut |= !self.draft.has_room();
        self.cut
    }

    fn look_again(&mut self, at: Timestamp) {
        self.again = Some(self.again.map_or(at, |earlier| earlier.min(at)));
    }

    fn policy(&self) -> RestartPolicy {
        let task = self.service.spec.as_ref().and_then(|spec| spec.task.as_ref());
        task.and_then(|task| task.restart).unwrap_or_default()
    }
}

/// Whether the task is meant to run, now or later.
pub(crate) fn is_wanted(task: &Task) -> bool {
    task.desired_state() <= TaskState::Running
}

/// Tasks of a slot from old to new; one of this very step is the newest.
pub(crate) fn age_key(task: &Task) -> (u64, String) {
    (task.meta.as_ref().map_or(u64::MAX, |meta| meta.created_at_ns), task.id.clone())
}

/// Whether the task's node cannot or may not run it any more.
fn is_lost(store: &Store, task: &Task) -> bool {
    store.node(&task.node_id).is_none_or(|node| {
        node.state() == NodeState::Down || node.availability() == NodeAvailability::Drain
    })
}

/// Whether nothing of the task runs, as far as one can know.
pub(crate) fn is_stopped(store: &Store, task: &Task) -> bool {
    task.state().is_terminal()
        || task.state() < TaskState::Assigned
        || store.node(&task.node_id).is_none_or(|node| node.state() == NodeState::Down)
}

fn restarts(policy: &RestartPolicy, state: TaskState) -> bool {
    match policy.condition() {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => state != TaskState::Complete,
        RestartCondition::None => false,
    }
}
