//! Knows which nodes live, by their sessions and heartbeats, and takes in what they report.
//!
//! A session makes its node `READY`; a node that is silent for three heartbeats is `DOWN` and its
//! session ends. Sessions are this leader's own and not stored: under a new leader every node opens
//! a new one, and counts as alive until it misses its heartbeats. A task's status counts only from
//! the task's own node, and only if it grows. What a session must be sent is in [`crate::assignments`].
//!
//! Source: `SwarmKit`, manager/dispatcher; faster where the mission says so (swarm.md §1.0).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_api::duration::{HEARTBEAT_PERIOD, HEARTBEATS_MISSED};
use shoal_api::time::Timestamp;
use shoal_api::{
    Assignments, Node, NodeProgress, NodeState, NodeStatus, SessionRequest, TaskState, TaskStatus,
    TaskStatusUpdate,
};

use crate::assignments::{Feed, Sender};
use crate::control::Answer;
use crate::draft::{Draft, Touched};
use crate::refusal::Refusal;
use crate::requests::check_data_path;
use crate::store::Store;

/// A node that is silent for so long is down.
const DOWN_AFTER: Duration = HEARTBEAT_PERIOD.saturating_mul(HEARTBEATS_MISSED);
/// A node that is down for so long will not come back with its tasks: they are given up.
const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Knows which nodes live and what they were sent.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    sessions: BTreeMap<String, Session>,
    /// Session by node id.
    by_node: BTreeMap<String, String>,
    /// Sessions whose node is not registered yet as they say.
    unregistered: BTreeSet<String>,
    pulses: BTreeMap<String, Pulse>,
    sender: Sender,
    now: Timestamp,
}

/// One node's session.
#[derive(Debug)]
struct Session {
    request: SessionRequest,
    /// Raft index that the node said its kernel holds.
    held: u64,
    feed: Feed,
}

/// What is known of a node's life.
#[derive(Clone, Copy, Debug)]
enum Pulse {
    /// Last sign of life.
    Alive(Timestamp),
    /// Its tasks are given up at that instant, if it has any.
    Down(Option<Timestamp>),
}

impl Dispatcher {
    pub(crate) fn new(
        store: &Store,
        now: Timestamp,
        last_seen: &BTreeMap<String, Timestamp>,
    ) -> Self {
        let mut pulses = BTreeMap::new();
        for node in store.nodes() {
            let seen = last_seen.get(&node.id).copied().unwrap_or(now);
            pulses.insert(node.id.clone(), pulse(node, seen, now));
        }
        Self {
            sessions: BTreeMap::new(),
            by_node: BTreeMap::new(),
            unregistered: BTreeSet::new(),
            pulses,
            sender: Sender::default(),
            now,
        }
    }

    /// Starts over from the store: it may lack what was staged last.
    pub(crate) fn reset(&mut self, store: &Store) {
        self.unregistered = self.sessions.keys().cloned().collect();
        let now = self.now;
        self.pulses.retain(|id, _| store.node(id).is_some());
        for node in store.nodes() {
            let seen = match self.pulses.get(&node.id) {
                Some(Pulse::Alive(seen)) => *seen,
                // It was about to be declared down, and still must be.
                Some(Pulse::Down(_)) => Timestamp(0),
                None => now,
            };
            // The store does not know of a session that was opened in what was lost.
            let open = self.by_node.contains_key(&node.id);
            let pulse = if open { Pulse::Alive(seen) } else { pulse(node, seen, now) };
            self.pulses.insert(node.id.clone(), pulse);
        }
    }

    pub(crate) fn opened(
        &mut self,
        store: &Store,
        session_id: String,
        request: SessionRequest,
        now: Timestamp,
    ) -> Vec<(String, Refusal)> {
        if store.node(&request.node_id).is_none() {
            let refusal = Refusal::NotFound { what: "node", id: request.node_id };
            return vec![(session_id, refusal)];
        }
        if !request.data_path_addr.is_empty()
            && let Err(refusal) = check_data_path(&request.data_path_addr)
        {
            return vec![(session_id, refusal)];
        }
        self.pulses.insert(request.node_id.clone(), Pulse::Alive(now));
        let older = self.by_node.insert(request.node_id.clone(), session_id.clone());
        let older = older.filter(|older| *older != session_id);
        if let Some(older) = &older {
            self.forget(older);
        }
        self.unregistered.insert(session_id.clone());
        self.sessions.insert(session_id, Session { request, held: 0, feed: Feed::default() });
        let replaced = |session_id: String| (session_id.clone(), Refusal::Replaced { session_id });
        older.map(replaced).into_iter().collect()
    }

    pub(crate) fn closed(&mut self, session_id: &str) {
        if let Some(session) = self.sessions.get(session_id) {
            self.by_node.remove(&session.request.node_id);
            self.forget(session_id);
        }
    }

    pub(crate) fn heartbeat(
        &mut self,
        session_id: String,
        held_index: u64,
        now: Timestamp,
    ) -> Option<(String, Refusal)> {
        let Some(session) = self.sessions.get_mut(&session_id) else {
            return Some((session_id.clone(), Refusal::NoSession { session_id }));
        };
        session.held = held_index;
        self.pulses.insert(session.request.node_id.clone(), Pulse::Alive(now));
        None
    }

    pub(crate) fn statuses(
        &mut self,
        draft: &mut Draft<'_>,
        session_id: &str,
        updates: Vec<TaskStatusUpdate>,
        now: Timestamp,
    ) -> Result<Answer, Refusal> {
        let Some(session) = self.sessions.get(session_id) else {
            return Err(Refusal::NoSession { session_id: session_id.to_owned() });
        };
        let node_id = session.request.node_id.clone();
        self.pulses.insert(node_id.clone(), Pulse::Alive(now));
        for update in updates {
            let Some(status) = update.status else { continue };
            let Some(task) = draft.task(&update.task_id) else { continue };
            // What comes before `ACCEPTED` is the managers' to write, `REMOVE` is desired only.
            let theirs =
                status.state() >= TaskState::Accepted && status.state() != TaskState::Remove;
            if task.node_id == node_id && theirs && status.state() > task.state() {
                draft.edit_task(&update.task_id, |task| task.status = Some(status));
            }
        }
        Ok(Answer::Stored)
    }

    /// Registers new sessions' nodes and declares silent ones down. Gives the sessions to end.
    pub(crate) fn step(
        &mut self,
        draft: &mut Draft<'_>,
        news: &BTreeSet<Touched>,
    ) -> Vec<(String, Refusal)> {
        self.now = draft.now();
        for touched in news {
            let Touched::Node(id) = touched else { continue };
            match draft.node(id) {
                Some(node) if !self.pulses.contains_key(id) => {
                    self.pulses.insert(id.clone(), pulse(node, self.now, self.now));
                }
                Some(_) => {}
                None => drop(self.pulses.remove(id)),
            }
        }
        for session_id in std::mem::take(&mut self.unregistered) {
            if let Some(session) = self.sessions.get(&session_id) {
                register(draft, &session.request);
            }
        }
        self.declare_down(draft)
    }

    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let pulses = self.pulses.values().filter_map(|pulse| match pulse {
            Pulse::Alive(seen) => Some(*seen + DOWN_AFTER),
            Pulse::Down(orphaned_at) => *orphaned_at,
        });
        pulses.chain(self.sender.deadline()).min()
    }

    /// Raft index that the kernels of all ready nodes hold. 0 while one of them has no session.
    pub(crate) fn settled(&self, store: &Store) -> u64 {
        let ready = store.nodes().filter(|node| node.state() == NodeState::Ready);
        let held = ready.map(|node| {
            let session = self.by_node.get(&node.id).and_then(|id| self.sessions.get(id));
            session.map_or(0, |session| session.feed.settled(session.held))
        });
        held.min().unwrap_or_else(|| store.index())
    }

    pub(crate) fn assignments(&mut self, store: &Store) -> Vec<(String, Assignments)> {
        let settled = self.settled(store);
        let sessions = self.sessions.iter_mut();
        let feeds = sessions.map(|(id, session)| {
            (id.as_str(), session.request.node_id.as_str(), &mut session.feed)
        });
        self.sender.assignments(store, settled, self.now, feeds)
    }

    pub(crate) fn progress(&self, store: &Store) -> Vec<NodeProgress> {
        let progress = store.nodes().map(|node| {
            let session = self.by_node.get(&node.id).and_then(|id| self.sessions.get(id));
            NodeProgress {
                node_id: node.id.clone(),
                held_index: session.map_or(0, |session| session.held),
                wanted_index: session
                    .map_or_else(|| store.index(), |session| session.feed.wanted(store)),
            }
        });
        progress.collect()
    }

    /// Declares nodes down whose last sign of life is too old, and gives up the tasks of those that
    /// are down for a day.
    fn declare_down(&mut self, draft: &mut Draft<'_>) -> Vec<(String, Refusal)> {
        let mut ended = Vec::new();
        for (node_id, pulse) in &mut self.pulses {
            match *pulse {
                Pulse::Alive(seen) if seen + DOWN_AFTER <= self.now => {
                    *pulse = Pulse::Down(Some(self.now + ORPHANED_AFTER));
                    let Some(node) = draft.node(node_id) else { continue };
                    let message = "heartbeat failure".into();
                    let status = NodeStatus {
                        state: NodeState::Down.into(),
                        message,
                        ..NodeStatus::default()
                    };
                    draft.put(Node { status: Some(status), ..Node::clone(node) });
                    if let Some(session_id) = self.by_node.remove(node_id) {
                        let silent = self.now.since(seen).as_millis();
                        let silent_ms = u64::try_from(silent).unwrap_or(u64::MAX);
                        ended
                            .push((session_id.clone(), Refusal::Expired { session_id, silent_ms }));
                    }
                }
                Pulse::Down(Some(at)) if at <= self.now => {
                    *pulse = Pulse::Down(None);
                    orphan_tasks(draft, node_id);
                }
                _ => {}
            }
        }
        for (session_id, _) in &ended {
            self.forget(session_id);
        }
        ended
    }

    fn forget(&mut self, session_id: &str) {
        self.sessions.remove(session_id);
        self.unregistered.remove(session_id);
    }
}

/// What to expect of a node: one that the store has as down stays so until it opens a session.
fn pulse(node: &Node, seen: Timestamp, now: Timestamp) -> Pulse {
    if node.state() == NodeState::Down {
        let since = node.meta.as_ref().map_or(now, |meta| Timestamp(meta.updated_at_ns));
        Pulse::Down(Some(since + ORPHANED_AFTER))
    } else {
        Pulse::Alive(seen)
    }
}

/// Writes down what a session says about its node, which is ready with it.
fn register(draft: &mut Draft<'_>, request: &SessionRequest) {
    let Some(node) = draft.node(&request.node_id) else { return };
    let mut node = Node::clone(node);
    if request.description.is_some() {
        node.description.clone_from(&request.description);
    }
    if !request.data_path_addr.is_empty() {
        node.data_path_addr.clone_from(&request.data_path_addr);
    }
    node.status = Some(NodeStatus { state: NodeState::Ready.into(), ..NodeStatus::default() });
    draft.put(node);
}

fn orphan_tasks(draft: &mut Draft<'_>, node_id: &str) {
    let running = draft.tasks_of_node(node_id).filter(|task| !task.state().is_terminal());
    let running: Vec<_> = running.map(|task| task.id.clone()).collect();
    let status = TaskStatus {
        state: TaskState::Orphaned.into(),
        timestamp_ns: draft.now().nanos(),
        message: "orphaned".into(),
        err: "the node was down for a day".into(),
        ..TaskStatus::default()
    };
    for id in running {
        draft.edit_task(&id, |task| task.status = Some(status.clone()));
    }
}
