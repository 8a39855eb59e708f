//! One leader's control: takes inputs, runs the roles, makes the next batch.
//!
//! The roles run in a fixed order, and again while one of them still changes something, so that
//! the batch leaves nothing to do but wait. All that control keeps beside the store is what may be
//! lost with a leader: sessions, what was sent on them, and each role's list of what to look at.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::id::IdSource;
use shoal_api::time::Timestamp;
use shoal_api::{
    Assignments, Batch, Caller, JoinRequest, JoinResponse, NodeProgress, SessionRequest,
    TaskStatusUpdate, Write, WriteResult, write_result,
};

use crate::allocator::Allocator;
use crate::ca::Ca;
use crate::dispatcher::{Beat, Dispatcher};
use crate::draft::{Draft, Touched};
use crate::founding::{self, Founding};
use crate::membership::{self, Reachable};
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::replicated::Replicated;
use crate::requests;
use crate::scheduler::Scheduler;
use crate::standing::Standing;
use crate::store::Store;

/// What the leader's loop takes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// The first manager's first write: cluster, ingress network and its own node. On a cluster
    /// that stands already only the node counts.
    Bootstrap {
        /// Ticket: comes back with the answer.
        id: u64,
        /// What the manager brings.
        founding: Box<Founding>,
    },
    /// This manager goes on without the others: it was made Raft's only member, offline.
    ForceNew {
        /// Ticket: comes back with the answer.
        id: u64,
        /// The manager's own node, as it is reached now.
        node: JoinRequest,
        /// Its id in Raft now, one after the last that the store gave.
        raft_id: u64,
    },
    /// A user's or a joining node's write.
    Write {
        /// Ticket: comes back with the answer.
        id: u64,
        /// Who asked.
        caller: Caller,
        /// What for.
        write: Write,
    },
    /// A node opened a session: it is ready from now on, and an older session of it ends.
    SessionOpened {
        /// New and unique.
        session_id: String,
        /// Node id of the caller's certificate.
        caller: String,
        /// Who the node says it is.
        request: SessionRequest,
    },
    /// A session's stream broke. The node is down only once its heartbeats are missed.
    SessionClosed {
        /// The session.
        session_id: String,
    },
    /// A sign of life.
    Heartbeat {
        /// The session.
        session_id: String,
        /// Node id of the caller's certificate; a heartbeat for another node's session is passed
        /// over.
        caller: String,
        /// Raft index that the node's kernel holds.
        held_index: u64,
        /// Digest of the root that the node's certificate is of, in hex; empty when unknown.
        issuer_digest: String,
    },
    /// What became of a node's tasks.
    TaskStatuses {
        /// Ticket: comes back with the answer, once the statuses are committed.
        id: u64,
        /// The session.
        session_id: String,
        /// Node id of the caller's certificate.
        caller: String,
        /// Of tasks of that node; others, and steps back, are passed over.
        updates: Vec<TaskStatusUpdate>,
    },
    /// The managers that answered this leader within its lease, itself among them. Until the first
    /// of these all count as reachable.
    Reachable {
        /// Their node ids.
        node_ids: BTreeSet<String>,
    },
    /// Raft's committed membership lacks a manager that was to leave it.
    MemberRemoved {
        /// Its id in Raft.
        raft_id: u64,
    },
}

/// What to answer once the step's batch is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The service of that id as it is stored then.
    Service(String),
    /// The node of that id as it is stored then.
    Node(String),
    /// A removal is on its way.
    Removed,
    /// The node of that id is a member.
    Joined(String),
    /// The cluster's object as it is stored then, without its keys.
    Cluster,
    /// Task statuses are stored: nothing to tell but that.
    Stored,
}

impl Answer {
    /// The answer's message, read from the store that has the batch.
    #[must_use]
    pub fn result(&self, store: &Store) -> WriteResult {
        use write_result::Result as Of;
        let result = match self {
            Self::Service(id) => store.service(id).map(|service| Of::Service((**service).clone())),
            Self::Node(id) => store.node(id).map(|node| Of::Node((**node).clone())),
            Self::Removed => Some(Of::Removed(true)),
            Self::Joined(id) => Some(Of::Joined(JoinResponse {
                cluster_id: store.cluster().map(|cluster| cluster.id.clone()).unwrap_or_default(),
                raft_id: store
                    .node(id)
                    .and_then(|node| node.manager.as_ref())
                    .map_or(0, |manager| manager.raft_id),
                managers: store.manager_addrs(),
                certificate: None,
            })),
            Self::Cluster => store
                .cluster()
                .map(|cluster| Of::Cluster(shoal_api::Cluster::clone(cluster).redacted())),
            Self::Stored => None,
        };
        WriteResult { result }
    }
}

/// What one step gives.
#[derive(Debug, Default)]
pub struct Step {
    /// To propose; its outcome must be reported before the next step.
    pub batch: Option<Batch>,
    /// To answer at once, by ticket.
    pub refused: Vec<(u64, Refusal)>,
    /// To answer by ticket when the batch is committed; at once when there is none; with an error
    /// when it is lost.
    pub on_commit: Vec<(u64, Answer)>,
    /// Sessions to end at once, and why: the node must open a new one.
    pub closed: Vec<(String, Refusal)>,
}

/// One leader's control.
#[derive(Debug)]
pub struct Control {
    ids: IdSource,
    dispatcher: Dispatcher,
    replicated: Replicated,
    allocator: Allocator,
    scheduler: Scheduler,
    reaper: Reaper,
    ca: Ca,
    reachable: Reachable,
    /// Index of the store that the roles know.
    known: u64,
    /// The next step must look at everything: a new leader, or a proposal that was lost.
    full_pass: bool,
    in_flight: bool,
    /// The last step stopped before it was done.
    more_at: Option<Timestamp>,
    /// When a removed node is forgotten.
    forget_at: Option<Timestamp>,
}

/// How often the roles may answer each other in one step. What is left waits for the next.
const ROUNDS: usize = 6;

impl Control {
    /// A new leader's control; its first step looks at everything.
    ///
    /// * `seed` - of the ids that it gives: another one for each leader.
    /// * `last_seen` - when each node last gave a sign of life, where that is known. A node is down
    ///   three missed heartbeats after that, else after `now`.
    #[must_use]
    pub fn new(
        store: &Store,
        seed: u64,
        now: Timestamp,
        last_seen: &BTreeMap<String, Timestamp>,
    ) -> Self {
        Self {
            ids: IdSource::new(seed),
            dispatcher: Dispatcher::new(store, now, last_seen),
            replicated: Replicated::default(),
            allocator: Allocator::default(),
            scheduler: Scheduler::default(),
            reaper: Reaper::default(),
            ca: Ca::default(),
            reachable: None,
            known: store.index(),
            full_pass: true,
            in_flight: false,
            more_at: None,
            forget_at: None,
        }
    }

    /// Takes the inputs in and makes the next batch.
    pub fn step(&mut self, store: &Store, inputs: Vec<Input>, now: Timestamp) -> Step {
        if self.in_flight || self.known != store.index() {
            self.full_pass = true;
        }
        self.in_flight = false;
        self.known = store.index();
        if std::mem::take(&mut self.full_pass) {
            self.dispatcher.reset(store);
            self.replicated.reset(store);
            self.allocator.reset(store);
            self.scheduler.reset(store);
            self.reaper.reset(store);
            self.ca.reset();
        }
        let mut draft = Draft::new(store, now);
        let mut step = Step::default();
        for input in inputs {
            self.take_in(&mut draft, &mut step, input, now);
        }
        membership::forget_removed(&mut draft);
        self.run_roles(&mut draft, &mut step);
        let more = self.full_pass
            || self.dispatcher.has_more()
            || self.replicated.has_more()
            || self.reaper.has_more();
        self.more_at = more.then_some(now);
        self.forget_at = membership::next_forgotten(&draft);
        step.batch = draft.batch();
        self.in_flight = step.batch.is_some();
        step
    }

    /// The step's batch is committed and the store, at this index, has it.
    pub fn committed(&mut self, index: u64) {
        self.in_flight = false;
        self.known = index;
    }

    /// The step's batch was not committed: what was staged is dropped, and the next step looks at
    /// everything again.
    pub fn lost(&mut self) {
        self.in_flight = false;
        self.full_pass = true;
    }

    /// When to step next though nothing came in.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let own = [self.more_at, self.forget_at];
        let roles =
            [self.dispatcher.deadline(), self.replicated.deadline(), self.reaper.deadline()];
        let deadlines = own.into_iter().chain(roles);
        deadlines.flatten().min()
    }

    /// What each open session must be sent now: first its complete set, then what changed. To be
    /// asked for after every step, committed or without a batch.
    pub fn assignments(&mut self, store: &Store) -> Vec<(String, Assignments)> {
        self.dispatcher.assignments(store)
    }

    /// What the certificates of the open sessions' nodes are to say and whom these are to trust, for
    /// every session to which something else was told before. To be asked for as
    /// [`assignments`](Self::assignments) is.
    pub fn standings(&mut self, store: &Store) -> Vec<Standing> {
        self.dispatcher.standings(store)
    }

    /// What every node's kernel holds, and what it should hold.
    #[must_use]
    pub fn progress(&self, store: &Store) -> Vec<NodeProgress> {
        self.dispatcher.progress(store)
    }

    fn take_in(&mut self, draft: &mut Draft<'_>, step: &mut Step, input: Input, now: Timestamp) {
        let (id, result) = match input {
            Input::Bootstrap { id, founding } => {
                (id, founding::bootstrap(draft, &mut self.ids, *founding))
            }
            Input::ForceNew { id, node, raft_id } => {
                (id, founding::force_new(draft, node, raft_id))
            }
            Input::Write { id, write, .. } => {
                (id, requests::write(draft, &mut self.ids, write, &self.reachable))
            }
            Input::TaskStatuses { id, session_id, caller, updates } => {
                (id, self.dispatcher.statuses(draft, &session_id, &caller, updates, now))
            }
            Input::SessionOpened { session_id, caller, request } => {
                let opened = self.dispatcher.opened(draft, session_id, &caller, request, now);
                step.closed.extend(opened);
                return;
            }
            Input::SessionClosed { session_id } => return self.dispatcher.closed(&session_id),
            Input::Heartbeat { session_id, caller, held_index, issuer_digest } => {
                let pulse = Beat { held_index, issuer_digest, now };
                step.closed.extend(self.dispatcher.heartbeat(draft, session_id, &caller, pulse));
                return;
            }
            Input::Reachable { node_ids } => {
                self.reachable = Some(node_ids);
                return;
            }
            Input::MemberRemoved { raft_id } => return membership::member_removed(draft, raft_id),
        };
        match result {
            Ok(answer) => step.on_commit.push((id, answer)),
            Err(refusal) => step.refused.push((id, refusal)),
        }
    }

    /// Runs the roles until none of them changes anything. Where that takes too long, or more than
    /// fits in a batch, the next step starts over with what is committed then.
    fn run_roles(&mut self, draft: &mut Draft<'_>, step: &mut Step) {
        let mut seen = [0; 6];
        for _ in 0..ROUNDS {
            let before = draft.touches();
            step.closed.extend(self.dispatcher.step(draft, &news(draft, &mut seen[0])));
            self.replicated.step(draft, &news(draft, &mut seen[1]), &mut self.ids);
            let settled = self.dispatcher.settled(draft);
            self.allocator.step(draft, &news(draft, &mut seen[2]), settled);
            self.scheduler.step(draft, &news(draft, &mut seen[3]));
            self.reaper.step(draft, &news(draft, &mut seen[4]), settled);
            self.ca.step(draft, &news(draft, &mut seen[5]));
            if !draft.has_room() {
                break;
            }
            if draft.touches() == before {
                return;
            }
        }
        self.full_pass = true;
    }
}

/// What was touched since a role's last turn.
fn news(draft: &Draft<'_>, seen: &mut usize) -> BTreeSet<Touched> {
    let news = draft.touched_since(*seen).iter().cloned().collect();
    *seen = draft.touches();
    news
}
