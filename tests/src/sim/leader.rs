//! The leader's loop over the real control plane, step by step as the manager runs it
//! (userspace/manager/src/leader/mod.rs): take in, step, propose, committed or lost, answer, send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::metrics::RaftMetrics;
use openraft::raft::ReadPolicy;
use openraft::{AsyncRuntime, Instant as _, ServerState};
use openraft_rt_sim::{SimInstant, SimRuntime};
use shoal_api::time::Timestamp;
use shoal_api::{Batch, Caller, WriteResult};
use shoal_control::{Control, Founding, Input, Refusal, Store};
use tokio::sync::mpsc;

use super::clock::ClusterClock;
use super::desk::{Command, Reply, ToAgent};
use super::invariants::Event;
use super::manager::Running;
use super::types::{Outcome, Proposal, TypeConfig};
use super::world::World;
use super::{members, types};

/// Commands that one step takes in.
const TAKEN: usize = 400;
/// Messages that may wait for one agent.
const SESSION_QUEUE: usize = 64;
const RETRY: Duration = Duration::from_millis(30);
const ALONE: Duration = Duration::from_secs(2);
const ALONE_CHECK: Duration = Duration::from_millis(250);
const HEARD_AT_MOST: Duration = Duration::from_secs(2);
/// What a quorum check may take before its answer is worth nothing.
const REACHED: Duration = Duration::from_secs(2);

/// Runs the loop whenever this manager leads, until the power fails.
pub(super) async fn supervise(
    world: Arc<World>,
    running: Arc<Running>,
    founding: Option<Founding>,
) {
    let mut metrics = running.raft.metrics();
    while running.is_live() {
        let (term, fatal) = {
            let now = metrics.borrow_and_update();
            let applied = now.last_applied.map(|last| *last.committed_leader_id());
            // All of the log is applied, too: an earlier loop of the same term, which had lost its
            // quorum for a moment, may have left a proposal there.
            let leads = now.state == ServerState::Leader
                && applied.is_some_and(|leader| *leader == now.current_term)
                && now.last_applied.map(|last| last.index) == now.last_log_index;
            let fatal = now.running_state.as_ref().err().map(ToString::to_string);
            ((leads && has_quorum(&now)).then_some(now.current_term), fatal)
        };
        if let Some(fatal) = fatal.filter(|_| running.is_live()) {
            world.judge.complain(format!("Raft of {} ended: {fatal}", running.raft_id));
            return;
        }
        if let Some(term) = term {
            let commands = running.desk.open();
            world.trace.note(format_args!("{} leads in term {term}", running.raft_id));
            world.seen.lock().led(term, running.raft_id);
            let leader = Leader::new(&world, &running, term, founding.clone());
            let work = Box::pin(leader.run(commands));
            let follow = Box::pin(members::reconcile(&world, &running));
            let lost = Box::pin(lost(&world, &running, term));
            match select(work, select(follow, lost)).await {
                Either::Left(_) | Either::Right(_) => {}
            }
            running.desk.close();
            world.trace.note(format_args!("{} leads no more", running.raft_id));
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

async fn lost(world: &World, running: &Running, term: u64) {
    let mut metrics = running.raft.metrics();
    loop {
        {
            let now = metrics.borrow_and_update();
            let over = now.state != ServerState::Leader
                || now.current_term != term
                || !has_quorum(&now)
                || now.running_state.is_err();
            if !running.is_live() || (over && !world.rules.never_steps_down) {
                return;
            }
        }
        if let Ok(Err(_ended)) = SimRuntime::timeout(ALONE_CHECK, metrics.changed()).await {
            return;
        }
    }
}

fn has_quorum(now: &RaftMetrics<TypeConfig>) -> bool {
    let single = now.membership_config.membership().voter_ids().count() == 1;
    let acked = now.last_quorum_acked.as_ref();
    single || acked.is_some_and(|acked| acked.into_inner().elapsed() < ALONE)
}

struct Leader {
    world: Arc<World>,
    running: Arc<Running>,
    term: u64,
    clock: ClusterClock,
    control: Control,
    sessions: BTreeMap<String, mpsc::Sender<ToAgent>>,
    waiting: BTreeMap<u64, Reply>,
    tickets: u64,
    inputs: Vec<Input>,
    /// As control was told last.
    reachable: BTreeSet<String>,
    removed: BTreeSet<u64>,
}

impl Leader {
    fn new(
        world: &Arc<World>,
        running: &Arc<Running>,
        term: u64,
        founding: Option<Founding>,
    ) -> Self {
        let store = running.view.store();
        let clock = ClusterClock::start(&running.host.clock, &store);
        let now = clock.now(&running.host.clock);
        let last_seen = last_seen(running, &store, now);
        let control = Control::new(&store, world.dice.next(), now, &last_seen);
        let mut leader = Self {
            world: world.clone(),
            running: running.clone(),
            term,
            clock,
            control,
            sessions: BTreeMap::new(),
            waiting: BTreeMap::new(),
            tickets: 0,
            inputs: Vec::new(),
            reachable: BTreeSet::new(),
            removed: BTreeSet::new(),
        };
        if let (None, Some(founding)) = (store.cluster(), founding) {
            let id = leader.ticket(None);
            leader.inputs.push(Input::Bootstrap { id, founding: Box::new(founding) });
        }
        leader
    }

    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            self.tell_members();
            if self.step().await.is_none() {
                return;
            }
            // Raft's membership is looked at now and then, though nothing comes in.
            let mut wait = ALONE_CHECK;
            if let Some(deadline) = self.control.deadline() {
                let due = deadline.since(self.clock.now(&self.running.host.clock));
                let due = self.running.host.clock.takes(due) + Duration::from_millis(1);
                wait = wait.min(due);
            }
            let Ok(first) = SimRuntime::timeout(wait, commands.recv()).await else { continue };
            let Some(first) = first else { return };
            self.take(first);
            let mut taken = 1;
            while taken < TAKEN
                && let Ok(next) = commands.try_recv()
            {
                taken += 1;
                self.take(next);
            }
        }
    }

    fn ticket(&mut self, reply: Option<Reply>) -> u64 {
        self.tickets += 1;
        if let Some(reply) = reply {
            self.waiting.insert(self.tickets, reply);
        }
        self.tickets
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Write { write, reply } => {
                let id = self.ticket(Some(reply));
                self.inputs.push(Input::Write { id, caller: Caller::default(), write: *write });
            }
            Command::Statuses { session_id, node_id, updates, reply } => {
                let id = self.ticket(Some(reply));
                self.inputs.push(Input::TaskStatuses { id, session_id, caller: node_id, updates });
            }
            Command::Open { session_id, request, messages } => {
                self.sessions.insert(session_id.clone(), messages);
                let caller = request.node_id.clone();
                self.inputs.push(Input::SessionOpened { session_id, caller, request: *request });
            }
            Command::Close { session_id } => {
                if self.sessions.remove(&session_id).is_some() {
                    self.inputs.push(Input::SessionClosed { session_id });
                }
            }
            Command::Heartbeat { session_id, node_id, held, reply } => {
                let known = self.sessions.contains_key(&session_id);
                reply.send(known).ok();
                if known {
                    let issuer_digest = String::new();
                    let caller = node_id;
                    let held_index = held;
                    let beat = Input::Heartbeat { session_id, caller, held_index, issuer_digest };
                    self.inputs.push(beat);
                }
            }
            Command::Progress { reply } => {
                let progress = self.control.progress(&self.running.view.store()).into_iter();
                let progress =
                    progress.map(|node| (node.node_id, (node.wanted_index, node.held_index)));
                drop(reply.send(progress.collect()));
            }
        }
    }

    /// What Raft knows of the managers: who answers, and who is a member no more.
    fn tell_members(&mut self) {
        let store = self.running.view.store();
        let metrics = self.running.raft.metrics().borrow_watched().clone();
        let heartbeats = metrics.heartbeat.clone().unwrap_or_default();
        let answers = |raft_id: u64| {
            raft_id == self.running.raft_id
                || heartbeats
                    .get(&raft_id)
                    .and_then(|acked| acked.as_ref())
                    .is_some_and(|acked| acked.into_inner().elapsed() < REACHED)
        };
        let managers: Vec<_> = store
            .nodes()
            .filter_map(|node| Some((node.id.clone(), node.manager.as_ref()?.raft_id)))
            .collect();
        let reachable: BTreeSet<String> = managers
            .iter()
            .filter(|(_, raft_id)| answers(*raft_id))
            .map(|(id, _)| id.clone())
            .collect();
        if reachable != self.reachable {
            self.reachable = reachable.clone();
            self.inputs.push(Input::Reachable { node_ids: reachable });
        }
        let settled =
            metrics.membership_config.log_id() == metrics.committed_membership_config.log_id();
        let members = members::committed(&self.running);
        let leaving = store.nodes().filter(|node| node.role() != shoal_api::NodeRole::Manager);
        let leaving: Vec<u64> =
            leaving.filter_map(|node| node.manager.as_ref()).map(|m| m.raft_id).collect();
        for raft_id in leaving {
            // A learner that was never added is none either.
            if settled && !members.contains(&raft_id) && self.removed.insert(raft_id) {
                self.inputs.push(Input::MemberRemoved { raft_id });
            }
        }
    }

    /// One step and what follows from it. `None`: Raft has stopped.
    async fn step(&mut self) -> Option<()> {
        let inputs = std::mem::take(&mut self.inputs);
        let now = self.clock.now(&self.running.host.clock);
        let step = self.control.step(&self.running.view.store(), inputs, now);
        for (session_id, reason) in step.closed {
            self.world.trace.note(format_args!("session {session_id} closed: {reason}"));
            self.sessions.remove(&session_id);
        }
        let mut index = None;
        if self.world.rules.refuses_at_once {
            for (id, refusal) in &step.refused {
                if let Some(reply) = self.waiting.remove(id) {
                    drop(reply.send(Err(refusal.clone())));
                }
            }
        }
        if let Some(batch) = step.batch {
            if self.world.rules.answers_before_commit {
                let mut store = self.running.view.store();
                let next = self.running.log.last_index() + 1;
                if store.apply(next, &batch).is_ok() {
                    let answers = step.on_commit.iter();
                    let answers = answers.map(|(id, answer)| (*id, Ok(answer.result(&store))));
                    self.answer(answers.collect(), Some(next));
                }
            }
            let outcome = self.propose(batch).await?;
            if let Some(conflict) = outcome.conflict {
                let raft_id = self.running.raft_id;
                self.world.trace.note(format_args!("{raft_id}'s own batch: {conflict}"));
                self.control.lost();
                // Nobody knows what became of these, nor whether those were refused for good.
                let answered = step.on_commit.iter().map(|(id, _)| id);
                for id in answered.chain(step.refused.iter().map(|(id, _)| id)) {
                    self.waiting.remove(id);
                }
                SimRuntime::sleep(RETRY).await;
                return Some(());
            }
            self.control.committed(outcome.index);
            index = Some(outcome.index);
        }
        let store = self.running.view.store();
        let refused = step.refused.into_iter().map(|(id, refusal)| (id, Err(refusal)));
        let answers = step.on_commit.iter().map(|(id, answer)| (*id, Ok(answer.result(&store))));
        self.answer(answers.chain(refused).collect(), index);
        self.tell_agents(&store);
        Some(())
    }

    /// Answers once it is sure that the store which the answers come from is the cluster's: when
    /// the step's batch has committed, else when a quorum confirms that this manager leads.
    fn answer(&mut self, answers: Vec<(u64, Result<WriteResult, Refusal>)>, index: Option<u64>) {
        let waiting = answers.into_iter();
        let waiting = waiting.filter_map(|(id, answer)| Some((self.waiting.remove(&id)?, answer)));
        let waiting: Vec<_> = waiting.collect();
        if waiting.is_empty() {
            return;
        }
        if let Some(index) = index {
            let (raft_id, term) = (self.running.raft_id, self.term);
            self.world.judge.observe(&Event::Acknowledged { raft_id, term, index });
        }
        let send = |waiting: Vec<(Reply, Result<WriteResult, Refusal>)>| {
            for (reply, answer) in waiting {
                drop(reply.send(answer));
            }
        };
        if index.is_some() || self.world.rules.refuses_at_once {
            return send(waiting);
        }
        let raft = self.running.raft.clone();
        drop(SimRuntime::spawn(async move {
            if raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok() {
                send(waiting);
            }
        }));
    }

    async fn propose(&self, batch: Batch) -> Option<Outcome> {
        let batch = Arc::new(batch);
        loop {
            if !self.running.is_live() {
                return None;
            }
            let proposal = Proposal { batch: batch.clone(), term: self.term };
            match self.running.raft.client_write(proposal).await {
                Ok(response) => return Some(response.data),
                Err(openraft::errors::RaftError::APIError(ClientWriteError::ForwardToLeader(
                    _,
                ))) => {
                    self.world.seen.lock().waited += 1;
                    SimRuntime::sleep(RETRY).await;
                }
                Err(_) => return None,
            }
        }
    }

    fn tell_agents(&mut self, store: &Store) {
        for (session_id, assignments) in self.control.assignments(store) {
            self.tell(&session_id, ToAgent::Assignments(assignments));
        }
        for standing in self.control.standings(store) {
            let is_manager = standing.role == shoal_api::NodeRole::Manager;
            self.tell(&standing.session_id, ToAgent::IsManager(is_manager));
        }
    }

    /// A session that cannot take its messages ends.
    fn tell(&mut self, session_id: &str, message: ToAgent) {
        let Some(messages) = self.sessions.get(session_id) else { return };
        if messages.try_send(message).is_err() {
            self.sessions.remove(session_id);
            self.inputs.push(Input::SessionClosed { session_id: session_id.to_owned() });
        }
    }
}

/// The old leader was alive when it was last heard.
fn last_seen(running: &Running, store: &Store, now: Timestamp) -> BTreeMap<String, Timestamp> {
    let Some((raft_id, heard)) = running.last_heard.lock().take() else { return BTreeMap::new() };
    let of_old_leader = |node: &shoal_api::Node| {
        node.manager.as_ref().is_some_and(|manager| manager.raft_id == raft_id)
    };
    let silent = (SimInstant::now() - heard).min(HEARD_AT_MOST);
    store
        .nodes()
        .filter(|node| raft_id != running.raft_id && of_old_leader(node))
        .map(|node| (node.id.clone(), now - silent))
        .collect()
}

/// A queue for one agent's messages.
pub(super) fn session_queue() -> (mpsc::Sender<ToAgent>, mpsc::Receiver<ToAgent>) {
    mpsc::channel(SESSION_QUEUE)
}

/// Who leads, as this manager knows it.
pub(super) fn leader(running: &Running) -> Option<(u64, u32)> {
    let metrics = running.raft.metrics();
    let now = metrics.borrow_watched();
    let id = now.current_leader?;
    let peer: &types::Peer = now.membership_config.membership().get_node(&id)?;
    Some((id, peer.host()))
}
