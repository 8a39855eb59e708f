//! Knows which nodes live, by their sessions and heartbeats, and takes in what they report.
//!
//! A session makes its node `READY`; a node that is silent for three heartbeats is `DOWN` and its
//! session ends. Sessions are this leader's own and not stored: under a new leader every node opens
//! a new one, and counts as alive until it misses its heartbeats. A task's status counts only from
//! the task's own node, and only if it grows. What a session must be sent is in [`crate::assignments`].
//!
//! Source: `SwarmKit`, manager/dispatcher; faster where the mission says so (swarm.md §1.0).

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::time::Timestamp;
use shoal_api::{
    Assignments, Node, NodeProgress, NodeState, NodeStatus, SessionRequest, TaskState,
    TaskStatusUpdate, validate,
};

use crate::assignments::{Feed, Sender};
use crate::control::Answer;
use crate::draft::{Draft, Touched};
use crate::instances::Instances;
use crate::membership::{check_addr, check_data_path};
use crate::orphans::{self, Orphans};
use crate::pulse::{ORPHANED_AFTER, Pulse};
use crate::refusal::Refusal;
use crate::registry;
use crate::standing::{self, Standing, Told};
use crate::store::Store;

/// Knows which nodes live and what they were sent.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    sessions: BTreeMap<String, Session>,
    /// Session by node id.
    by_node: BTreeMap<String, String>,
    /// Sessions whose node is not registered yet as they say.
    unregistered: BTreeSet<String>,
    pulses: BTreeMap<String, Pulse>,
    instances: Instances,
    orphans: Orphans,
    sender: Sender,
    /// Some session may have to hear of its node's standing.
    standings_due: bool,
    now: Timestamp,
}

/// One node's session.
#[derive(Debug)]
struct Session {
    request: SessionRequest,
    /// Raft index that the node said its kernel holds.
    held: u64,
    feed: Feed,
    /// What its node was told of its standing last.
    told: Option<Told>,
}

/// A session's sign of life.
pub(crate) struct Beat {
    /// Raft index that the node's kernel holds.
    pub(crate) held_index: u64,
    /// Digest of the root that the node's certificate is of; empty when unknown.
    pub(crate) issuer_digest: String,
    /// When it came.
    pub(crate) now: Timestamp,
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
            pulses.insert(node.id.clone(), Pulse::of(store, node, seen, now));
        }
        Self {
            sessions: BTreeMap::new(),
            by_node: BTreeMap::new(),
            unregistered: BTreeSet::new(),
            pulses,
            instances: Instances::default(),
            orphans: Orphans::default(),
            sender: Sender::default(),
            standings_due: true,
            now,
        }
    }

    /// Starts over from the store: it may lack what was staged last.
    pub(crate) fn reset(&mut self, store: &Store) {
        self.unregistered = self.sessions.keys().cloned().collect();
        self.standings_due = true;
        self.orphans.reset(store);
        let now = self.now;
        self.pulses.retain(|id, _| store.node(id).is_some());
        for node in store.nodes() {
            let pulse = match self.pulses.get(&node.id) {
                // The store does not know of a session that was opened in what was lost.
                Some(known @ Pulse::Alive { .. }) if self.by_node.contains_key(&node.id) => *known,
                Some(Pulse::Alive { seen, .. }) => Pulse::of(store, node, *seen, now),
                // It was about to be declared down, and still must be.
                Some(Pulse::Down(_)) => Pulse::of(store, node, Timestamp(0), now),
                None => Pulse::of(store, node, now, now),
            };
            self.pulses.insert(node.id.clone(), pulse);
        }
    }

    /// Whether there is more to do than fitted in the batch.
    pub(crate) fn has_more(&self) -> bool {
        self.orphans.has_more()
    }

    /// Takes a new session in. Gives the sessions to end: the new one where it is refused, else the
    /// one before it.
    pub(crate) fn opened(
        &mut self,
        store: &Store,
        session_id: String,
        caller: &str,
        request: SessionRequest,
        now: Timestamp,
    ) -> Vec<(String, Refusal)> {
        if let Err(refusal) = self.check_session(store, caller, &request) {
            return vec![(session_id, refusal)];
        }
        let node_id = request.node_id.clone();
        self.pulses.insert(node_id.clone(), Pulse::alive(store, now));
        let older = self.by_node.insert(node_id.clone(), session_id.clone());
        let older = older.filter(|older| *older != session_id);
        let older = older.map(|older| {
            let before = self.sessions.get(&older).map(|session| session.request.instance.clone());
            self.forget(&older);
            if before.is_some_and(|before| self.instances.is_copy(&node_id, &before)) {
                (older, Refusal::Copy { id: node_id })
            } else {
                (older.clone(), Refusal::Replaced { session_id: older })
            }
        });
        self.unregistered.insert(session_id.clone());
        self.standings_due = true;
        let session = Session { request, held: 0, feed: Feed::default(), told: None };
        self.sessions.insert(session_id, session);
        older.into_iter().collect()
    }

    fn check_session(
        &mut self,
        store: &Store,
        caller: &str,
        request: &SessionRequest,
    ) -> Result<(), Refusal> {
        let id = &request.node_id;
        if caller != id {
            return Err(Refusal::OtherNode { caller: caller.to_owned(), id: id.clone() });
        }
        if store.cluster().is_some_and(|cluster| cluster.has_removed(id)) {
            return Err(Refusal::Removed { id: id.clone() });
        }
        if store.node(id).is_none() {
            return Err(Refusal::NotFound { what: "node", id: id.clone() });
        }
        if let Some(description) = &request.description {
            validate::node_description(description)?;
        }
        if !request.data_path_addr.is_empty() {
            check_data_path(&request.data_path_addr)?;
        }
        if !request.addr.is_empty() {
            check_addr(&request.addr)?;
        }
        let live = self.by_node.contains_key(id);
        if self.instances.admits(id, &request.instance, live) {
            Ok(())
        } else {
            Err(Refusal::Copy { id: id.clone() })
        }
    }

    pub(crate) fn closed(&mut self, session_id: &str) {
        if let Some(session) = self.sessions.get(session_id) {
            self.by_node.remove(&session.request.node_id);
            self.forget(session_id);
        }
    }

    pub(crate) fn heartbeat(
        &mut self,
        draft: &mut Draft<'_>,
        session_id: String,
        caller: &str,
        beat: Beat,
    ) -> Option<(String, Refusal)> {
        let Some(session) = self.sessions.get_mut(&session_id) else {
            return Some((session_id.clone(), Refusal::NoSession { session_id }));
        };
        let node_id = &session.request.node_id;
        if node_id != caller {
            return None;
        }
        session.held = beat.held_index;
        self.pulses.insert(node_id.clone(), Pulse::alive(draft.committed(), beat.now));
        registry::holds(draft, node_id, &beat.issuer_digest);
        None
    }

    pub(crate) fn statuses(
        &mut self,
        draft: &mut Draft<'_>,
        session_id: &str,
        caller: &str,
        updates: Vec<TaskStatusUpdate>,
        now: Timestamp,
    ) -> Result<Answer, Refusal> {
        let Some(session) = self.sessions.get(session_id) else {
            return Err(Refusal::NoSession { session_id: session_id.to_owned() });
        };
        let node_id = session.request.node_id.clone();
        if node_id != caller {
            return Err(Refusal::OthersSession { session_id: session_id.to_owned() });
        }
        if let Some(Pulse::Alive { seen, .. }) = self.pulses.get_mut(&node_id) {
            *seen = now;
        }
        for update in updates {
            let Some(mut status) = update.status else { continue };
            registry::clip(&mut status.message);
            registry::clip(&mut status.err);
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
        for session_id in std::mem::take(&mut self.unregistered) {
            if let Some(session) = self.sessions.get(&session_id) {
                registry::register(draft, &session.request);
            }
        }
        let mut ended = Vec::new();
        for touched in news {
            self.standings_due |= matches!(touched, Touched::Node(_) | Touched::Other);
            if let Touched::Node(id) = touched {
                ended.extend(self.look_at(draft, id));
            }
        }
        ended.extend(self.declare_down(draft));
        self.orphans.step(draft);
        ended
    }

    /// A node came, changed or went. Gives its session where that must end.
    fn look_at(&mut self, draft: &Draft<'_>, id: &str) -> Option<(String, Refusal)> {
        let before = self.pulses.get(id).copied();
        let refusal = match draft.node(id) {
            None => {
                self.pulses.remove(id);
                self.instances.forget(id);
                self.orphans.give_up(id, orphans::REMOVED);
                Refusal::Removed { id: id.to_owned() }
            }
            // It said so itself: one that was silent is known to be down.
            Some(node)
                if node.state() == NodeState::Down
                    && matches!(before, Some(Pulse::Alive { .. })) =>
            {
                self.pulses.insert(id.to_owned(), Pulse::Down(Some(self.now + ORPHANED_AFTER)));
                Refusal::Left { id: id.to_owned() }
            }
            Some(node) => {
                if before.is_none() {
                    let pulse = Pulse::of(draft, node, self.now, self.now);
                    self.pulses.insert(id.to_owned(), pulse);
                }
                return None;
            }
        };
        let session_id = self.by_node.remove(id)?;
        self.forget(&session_id);
        Some((session_id, refusal))
    }

    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let pulses = self.pulses.values().filter_map(|pulse| match *pulse {
            Pulse::Alive { seen, patience } => Some(seen + patience),
            Pulse::Down(orphaned_at) => orphaned_at,
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

    /// What changed for the open sessions' nodes since they were told.
    pub(crate) fn standings(&mut self, store: &Store) -> Vec<Standing> {
        if !std::mem::take(&mut self.standings_due) {
            return Vec::new();
        }
        let mut standings = Vec::new();
        for (session_id, session) in &mut self.sessions {
            let node_id = &session.request.node_id;
            let now = standing::of(store, node_id);
            if now.is_none() || session.told == now {
                continue;
            }
            session.told.clone_from(&now);
            let Some((role, raft_id, issuer_digest, trusted)) = now else { continue };
            let (session_id, node_id) = (session_id.clone(), node_id.clone());
            standings.push(Standing { session_id, node_id, role, raft_id, issuer_digest, trusted });
        }
        standings
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
                Pulse::Alive { seen, patience } if seen + patience <= self.now => {
                    *pulse = Pulse::Down(Some(self.now + ORPHANED_AFTER));
                    let Some(node) = draft.node(node_id) else { continue };
                    let status = NodeStatus {
                        state: NodeState::Down.into(),
                        message: "heartbeat failure".into(),
                        ..node.status.clone().unwrap_or_default()
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
                    self.orphans.give_up(node_id, orphans::LONG_DOWN);
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
