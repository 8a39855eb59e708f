//! What each node must run and know, and what of it a session still lacks.
//!
//! A node's set is its own tasks, and the cluster's routes: all nodes, services and backends, the
//! same for everyone and computed once per index. A session gets the complete set first and then
//! the difference to what it was sent, so the order on its stream is the order of the Raft log.
//!
//! A running task that is to stop first leaves the rings: its node learns of the stop only when
//! every ready node's kernel holds the routes without it (pain point P4), or after
//! [`DRAIN_TIMEOUT`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::time::Timestamp;
use shoal_api::{
    AssignmentChange, Assignments, AssignmentsType, BackendState, NodeState, RouteBackend,
    RouteNode, RouteService, Task, TaskState, assignment_change::Item,
};

use crate::store::Store;

/// How long a task that is to stop waits for slow nodes to forget it. A dead one is down sooner.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the cluster's data planes know alike, by number.
#[derive(Debug, Default, PartialEq)]
struct Routes {
    nodes: BTreeMap<u32, RouteNode>,
    services: BTreeMap<u32, RouteService>,
    backends: BTreeMap<u32, RouteBackend>,
}

/// What one session was sent.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    /// Index of the last message.
    index: u64,
    /// Index of the store that the node's set was last computed from: nothing new for it since.
    through: u64,
    tasks: BTreeMap<String, Arc<Task>>,
}

/// Computes the sets, once per index for all sessions.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    /// Index and settled index of the last computation.
    last: Option<(u64, u64)>,
    /// What every session that was sent anything knows by now.
    routes: Routes,
    /// When a task that waits for its drain must be told to stop anyway.
    drain_at: Option<Timestamp>,
}

impl Feed {
    /// Raft index that a node's kernel holds, if it said that it holds `held`: with the last
    /// message it holds all that has happened since without concerning it.
    pub(crate) fn settled(&self, held: u64) -> u64 {
        match &self.sent {
            Some(sent) if held >= sent.index => sent.through,
            Some(_) => held,
            None => 0,
        }
    }

    /// Raft index that the node's kernel should hold.
    pub(crate) fn wanted(&self, store: &Store) -> u64 {
        match &self.sent {
            Some(sent) if sent.through == store.index() => sent.index,
            // Not computed yet: it may concern the node.
            _ => store.index(),
        }
    }
}

impl Sender {
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.drain_at
    }

    /// What each session lacks, given as (session id, node id, what it was sent).
    pub(crate) fn assignments<'f>(
        &mut self,
        store: &Store,
        settled: u64,
        now: Timestamp,
        feeds: impl Iterator<Item = (&'f str, &'f str, &'f mut Feed)>,
    ) -> Vec<(String, Assignments)> {
        let index = store.index();
        let same = self.last == Some((index, settled)) && self.drain_at.is_none_or(|at| now < at);
        // All sessions know the same routes, so one difference serves them all.
        let mut difference = Vec::new();
        if self.last.is_none_or(|(last, _)| last != index) {
            let routes = Routes::of(store);
            difference = routes.difference(&self.routes);
            self.routes = routes;
        }
        self.last = Some((index, settled));
        if !same {
            self.drain_at = None;
        }
        let mut messages = Vec::new();
        for (session_id, node_id, feed) in feeds {
            if same && feed.sent.is_some() {
                continue;
            }
            let tasks = self.tasks_of(store, node_id, settled, now);
            let (kind, applies_to, mut changes) = match &feed.sent {
                None => {
                    let all = self.routes.difference(&Routes::default());
                    (AssignmentsType::Complete, 0, all)
                }
                Some(sent) => (AssignmentsType::Changes, sent.index, difference.clone()),
            };
            let before = feed.sent.take();
            let old = before.as_ref().map(|sent| &sent.tasks);
            task_difference(&mut changes, old.unwrap_or(&BTreeMap::new()), &tasks);
            let silent = kind == AssignmentsType::Changes && changes.is_empty();
            let sent_index = if silent { applies_to } else { index };
            feed.sent = Some(Sent { index: sent_index, through: index, tasks });
            if !silent {
                let message =
                    Assignments { r#type: kind.into(), applies_to, results_in: index, changes };
                messages.push((session_id.to_owned(), message));
            }
        }
        messages
    }

    /// A node's own tasks, as it must be told now.
    fn tasks_of(
        &mut self,
        store: &Store,
        node_id: &str,
        settled: u64,
        now: Timestamp,
    ) -> BTreeMap<String, Arc<Task>> {
        let tasks = store.tasks_of_node(node_id).filter(|task| task.state() >= TaskState::Assigned);
        let told = tasks.map(|task| {
            let drains = task.state() == TaskState::Running
                && task.desired_state() > TaskState::Running
                && task.version() > settled;
            let asked = task.meta.as_ref().map_or(now, |meta| Timestamp(meta.updated_at_ns));
            let until = asked + DRAIN_TIMEOUT;
            if !drains || until <= now {
                return (task.id.clone(), task.clone());
            }
            self.drain_at = Some(self.drain_at.map_or(until, |earlier| earlier.min(until)));
            let desired_state = TaskState::Running.into();
            (task.id.clone(), Arc::new(Task { desired_state, ..Task::clone(task) }))
        });
        told.collect()
    }
}

impl Routes {
    fn of(store: &Store) -> Self {
        let mut routes = Self::default();
        for node in store.nodes() {
            if node.number != 0 && !node.data_path_addr.is_empty() {
                let route = RouteNode {
                    number: node.number,
                    node_id: node.id.clone(),
                    data_path_addr: node.data_path_addr.clone(),
                };
                routes.nodes.insert(node.number, route);
            }
        }
        for service in store.services() {
            if service.number != 0 && !service.ports.is_empty() {
                let route = RouteService {
                    number: service.number,
                    service_id: service.id.clone(),
                    name: service.name().to_owned(),
                    ports: service.ports.clone(),
                };
                routes.services.insert(service.number, route);
            }
        }
        let running = store.tasks().filter(|task| task.state() == TaskState::Running);
        let backends = running.filter_map(|task| backend(store, task));
        routes.backends = backends.map(|backend| (backend.number, backend)).collect();
        routes
    }

    /// What makes `old` these routes.
    fn difference(&self, old: &Self) -> Vec<AssignmentChange> {
        let mut changes = Vec::new();
        map_difference(&mut changes, &old.nodes, &self.nodes, |item, remove| {
            let number = item.number;
            let key = || RouteNode { number, ..RouteNode::default() };
            Item::Node(if remove { key() } else { item.clone() })
        });
        map_difference(&mut changes, &old.services, &self.services, |item, remove| {
            let number = item.number;
            let key = || RouteService { number, ..RouteService::default() };
            Item::Service(if remove { key() } else { item.clone() })
        });
        map_difference(&mut changes, &old.backends, &self.backends, |item, remove| {
            let number = item.number;
            let key = || RouteBackend { number, ..RouteBackend::default() };
            Item::Backend(if remove { key() } else { item.clone() })
        });
        changes
    }
}

/// A running task as all data planes see it; `None` where no packet may go to it.
fn backend(store: &Store, task: &Task) -> Option<RouteBackend> {
    let node = store.node(&task.node_id).filter(|node| node.state() != NodeState::Down)?;
    let service = store.service(&task.service_id)?;
    let attachment = task.attachments.first()?;
    let state = if task.desired_state() <= TaskState::Running {
        BackendState::Active
    } else {
        BackendState::Draining
    };
    Some(RouteBackend {
        number: attachment.backend,
        task_id: task.id.clone(),
        service: service.number,
        node: node.number,
        address: attachment.address.split('/').next()?.to_owned(),
        mac: attachment.mac.clone(),
        state: state.into(),
    })
}

fn map_difference<T: PartialEq>(
    changes: &mut Vec<AssignmentChange>,
    old: &BTreeMap<u32, T>,
    new: &BTreeMap<u32, T>,
    item: impl Fn(&T, bool) -> Item,
) {
    for (number, value) in old {
        if !new.contains_key(number) {
            changes.push(AssignmentChange { remove: true, item: Some(item(value, true)) });
        }
    }
    for (number, value) in new {
        if old.get(number) != Some(value) {
            changes.push(AssignmentChange { remove: false, item: Some(item(value, false)) });
        }
    }
}

fn task_difference(
    changes: &mut Vec<AssignmentChange>,
    old: &BTreeMap<String, Arc<Task>>,
    new: &BTreeMap<String, Arc<Task>>,
) {
    for id in old.keys().filter(|id| !new.contains_key(*id)) {
        let task = Task { id: id.clone(), ..Task::default() };
        changes.push(AssignmentChange { remove: true, item: Some(Item::Task(task)) });
    }
    for (id, task) in new {
        if !old.get(id).is_some_and(|old| tells_nothing_new(old, task)) {
            let task = Item::Task(Task::clone(task));
            changes.push(AssignmentChange { remove: false, item: Some(task) });
        }
    }
}

/// Whether an agent that knows `old` need not hear of `new`: the status is its own report.
fn tells_nothing_new(old: &Arc<Task>, new: &Arc<Task>) -> bool {
    Arc::ptr_eq(old, new)
        || (old.desired_state == new.desired_state
            && old.attachments == new.attachments
            && old.spec == new.spec)
}
