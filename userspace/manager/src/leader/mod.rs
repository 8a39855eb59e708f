//! The one loop that runs while this manager leads, and the only writer of the store.
//!
//! It takes in what came by RPC, steps the control plane, proposes the batch, tells the control
//! plane how that went, answers, and sends each agent what changed for it; then it sleeps until
//! something comes in or a deadline is due. When leadership is lost the loop is dropped: whoever
//! waits for an answer learns that there is none, and every session ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ReadPolicy;
use prost::Message;
use shoal_api::{
    Batch, HeartbeatRequest, Managers, SessionMessage, SessionStart, Standing, WriteResult,
    session_message,
};
use shoal_control::{Control, Input, Refusal, Store};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::{debug, error, warn};

use self::clock::Clock;
pub use self::desk::{Command, Desk, LastHeard, Messages, NotServing, Reply};
pub use self::supervisor::{Leadership, has_quorum};
use crate::members;
use crate::rpc::status;
use crate::state_machine::View;
use crate::types::{Outcome, Proposal, Raft};

mod clock;
mod desk;
mod supervisor;

/// Commands that one step takes in, so that their changes share a batch. A report counts as many
/// as it has tasks, a write as one for every KiB: the batch must fit in a message.
const TAKEN: usize = 400;
/// Messages that may wait for one agent. One that is further behind gets a full set anew.
pub const SESSION_QUEUE: usize = 1024;
/// Between two tries to propose while the leader's lease is in doubt.
const RETRY: Duration = Duration::from_millis(30);

/// One agent's stream.
struct Session {
    node_id: String,
    messages: Messages,
}

struct Leader {
    raft: Raft,
    /// In which it leads: no other's proposals are its own.
    term: u64,
    view: Arc<View>,
    clock: Clock,
    control: Control,
    /// Where the cluster's spec says nothing.
    usual_heartbeat: Duration,
    lease: Duration,
    sessions: BTreeMap<String, Session>,
    /// Who waits for the answer to a ticket.
    waiting: BTreeMap<u64, Reply>,
    tickets: u64,
    managers: Vec<String>,
    inputs: Vec<Input>,
}

impl Leader {
    fn new(leadership: &Leadership, term: u64) -> Self {
        let view = leadership.view.clone();
        let store = view.store();
        let clock = Clock::start(&store);
        let last_seen = leadership.last_seen(&store, &clock);
        let control = Control::new(&store, rand::random(), clock.now(), &last_seen);
        let mut leader = Self {
            raft: leadership.raft.clone(),
            term,
            view,
            clock,
            control,
            usual_heartbeat: leadership.agent_heartbeat,
            lease: leadership.lease,
            sessions: BTreeMap::new(),
            waiting: BTreeMap::new(),
            tickets: 0,
            managers: store.manager_addrs(),
            inputs: Vec::new(),
        };
        if store.cluster().is_none()
            && let Some(founding) = leadership.bootstrap.clone()
        {
            // After a restart nobody waits for it.
            let waiting = leadership.founding.lock().take();
            let id = leader.ticket(waiting);
            let founding = Box::new(founding.into_control());
            leader.inputs.push(Input::Bootstrap { id, founding });
        }
        if let Some(node) = leadership.forced.clone()
            && !knows(&store, leadership.raft_id)
        {
            let id = leader.ticket(None);
            leader.inputs.push(Input::ForceNew { id, node, raft_id: leadership.raft_id });
        }
        leader
    }

    /// Ends when the Raft node cannot go on; else it is dropped.
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            if self.step().await.is_none() {
                return;
            }
            let first = match self.control.deadline() {
                None => commands.recv().await,
                Some(deadline) => {
                    let wait = deadline.since(self.clock.now());
                    match tokio::time::timeout(wait, commands.recv()).await {
                        Ok(command) => command,
                        Err(_due) => continue,
                    }
                }
            };
            let Some(first) = first else { return };
            let mut taken = weight(&first);
            self.take(first);
            while taken < TAKEN
                && let Ok(next) = commands.try_recv()
            {
                taken += weight(&next);
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

    /// Whoever asked may have gone away since, so answers may find nobody.
    fn take(&mut self, command: Command) {
        match command {
            Command::Write { caller, write, reply } => {
                let id = self.ticket(Some(reply));
                self.inputs.push(Input::Write { id, caller, write: *write });
            }
            Command::Statuses { session_id, caller, updates, reply } => {
                let id = self.ticket(Some(reply));
                self.inputs.push(Input::TaskStatuses { id, session_id, caller, updates });
            }
            Command::Open { session_id, request, messages } => {
                let start = session_message::Message::Start(SessionStart {
                    session_id: session_id.clone(),
                    heartbeat_period_ns: self.heartbeat_ns(),
                });
                // The queue is new and empty.
                drop(messages.try_send(message(start)));
                drop(messages.try_send(message(managers(&self.managers))));
                let node_id = request.node_id.clone();
                let session = Session { node_id: node_id.clone(), messages };
                self.sessions.insert(session_id.clone(), session);
                self.inputs.push(Input::SessionOpened { session_id, caller: node_id, request });
            }
            Command::Close { session_id } => {
                // One that was ended here is closed for control already.
                if self.sessions.remove(&session_id).is_some() {
                    self.inputs.push(Input::SessionClosed { session_id });
                }
            }
            Command::Heartbeat { caller, request, reply } => {
                let HeartbeatRequest { session_id, held_index, issuer_digest } = request;
                let session = self.sessions.get(&session_id);
                let known = session.is_some_and(|session| session.node_id == caller);
                reply.send(known.then(|| self.heartbeat_ns())).ok();
                if known {
                    let beat = Input::Heartbeat { session_id, caller, held_index, issuer_digest };
                    self.inputs.push(beat);
                }
            }
            Command::MemberRemoved { raft_id } => {
                self.inputs.push(Input::MemberRemoved { raft_id });
            }
            Command::Progress { reply } => {
                drop(reply.send(self.control.progress(&self.view.store())));
            }
        }
    }

    /// How often an agent must send a heartbeat, as the cluster's spec says.
    fn heartbeat_ns(&self) -> u64 {
        let store = self.view.store();
        let period = store.cluster().map_or(self.usual_heartbeat, |now| now.heartbeat_period());
        u64::try_from(period.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Which managers' nodes answer this leader.
    fn reachable(&self, store: &Store) -> BTreeSet<String> {
        let metrics = self.raft.metrics();
        let reachable = members::reachable(&metrics.borrow_watched(), self.lease);
        let nodes = store.nodes().filter(|node| {
            node.manager.as_ref().is_some_and(|manager| reachable.contains(&manager.raft_id))
        });
        nodes.map(|node| node.id.clone()).collect()
    }

    /// One step of the control plane and what follows from it. `None`: Raft has stopped.
    async fn step(&mut self) -> Option<()> {
        let mut inputs = vec![Input::Reachable { node_ids: self.reachable(&self.view.store()) }];
        inputs.append(&mut self.inputs);
        let step = self.control.step(&self.view.store(), inputs, self.clock.now());
        for (session_id, reason) in step.closed {
            if let Some(session) = self.sessions.remove(&session_id) {
                drop(session.messages.try_send(Err(status::refused(&reason))));
            }
        }
        let proposed = step.batch.is_some();
        if let Some(batch) = step.batch {
            let outcome = self.propose(batch).await?;
            if let Some(conflict) = outcome.conflict {
                // Only a fault in a role can do this; what it staged is dropped and made anew.
                error!(conflict, "the store refused the leader's own batch");
                self.control.lost();
                let lost = step.on_commit.iter().map(|(id, _)| id);
                for id in lost.chain(step.refused.iter().map(|(id, _)| id)) {
                    self.waiting.remove(id);
                }
                tokio::time::sleep(RETRY).await;
                return Some(());
            }
            self.control.committed(outcome.index);
        }
        let store = self.view.store();
        let stored = step.on_commit.into_iter().map(|(id, answer)| (id, Ok(answer.result(&store))));
        let refused = step.refused.into_iter().map(|(id, refusal)| (id, Err(refusal)));
        let answers = stored.chain(refused).collect();
        self.answer(answers, proposed);
        self.tell_managers(&store);
        self.tell_standings(&store);
        self.tell_assignments(&store);
        Some(())
    }

    /// Answers what a step decided. A refusal speaks of the step's batch as of the store, so it is
    /// told once that has committed; where there was none, once a quorum has confirmed that nobody
    /// else leads. The loop does not wait for that.
    fn answer(&mut self, answers: Vec<(u64, Result<WriteResult, Refusal>)>, committed: bool) {
        let answers: Vec<_> = answers
            .into_iter()
            .filter_map(|(id, answer)| Some((self.waiting.remove(&id)?, answer)))
            .collect();
        if answers.is_empty() {
            return;
        }
        let tell = move || {
            for (reply, answer) in answers {
                // Whoever asked may be gone.
                drop(reply.send(answer));
            }
        };
        if committed {
            return tell();
        }
        let raft = self.raft.clone();
        tokio::spawn(async move {
            if raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok() {
                tell();
            }
        });
    }

    /// Proposes until Raft takes the batch: a starved machine's lease may be in doubt for a moment.
    async fn propose(&self, batch: Batch) -> Option<Outcome> {
        loop {
            let (responder, complete) = ProgressResponder::complete_only();
            let write = self.raft.write(Proposal(batch.clone()));
            if let Err(ended) = write.with_leader(self.term).responder(responder).await {
                warn!(%ended, "the proposal failed");
                return None;
            }
            match complete.await {
                Ok(Ok(response)) => return Some(response.data),
                // It was refused before it entered the log, so it may be proposed again.
                Ok(Err(ClientWriteError::ForwardToLeader(reason))) => {
                    debug!(%reason, "the proposal must wait");
                    tokio::time::sleep(RETRY).await;
                }
                Ok(Err(failure)) => {
                    warn!(%failure, "the proposal failed");
                    return None;
                }
                Err(_dropped) => {
                    warn!("the proposal was given up by Raft");
                    return None;
                }
            }
        }
    }

    fn tell_managers(&mut self, store: &Store) {
        let now = store.manager_addrs();
        if now != self.managers {
            self.managers = now;
            for session in self.sessions.values() {
                // One whose queue is full is ended with its next assignments.
                drop(session.messages.try_send(message(managers(&self.managers))));
            }
        }
    }

    /// What its node's certificate is to say, and whom it is to trust.
    fn tell_standings(&mut self, store: &Store) {
        let standings = self.control.standings(store);
        if standings.is_empty() {
            return;
        }
        let root_ca = store.cluster().and_then(|cluster| cluster.root_ca.as_ref());
        let roots_pem = root_ca.map(shoal_identity::roots_pem).unwrap_or_default();
        for standing in standings {
            let told = session_message::Message::Standing(Standing {
                role: standing.role.into(),
                issuer_digest: standing.issuer_digest,
                roots_pem: roots_pem.clone(),
                raft_id: standing.raft_id,
            });
            self.send(&standing.session_id, told);
        }
    }

    fn tell_assignments(&mut self, store: &Store) {
        for (session_id, assignments) in self.control.assignments(store) {
            self.send(&session_id, session_message::Message::Assignments(assignments));
        }
    }

    /// A session that cannot take what it must know ends: the agent opens a new one and gets all of
    /// it anew, which is less than what it has missed.
    fn send(&mut self, session_id: &str, what: session_message::Message) {
        let Some(session) = self.sessions.get(session_id) else { return };
        if session.messages.try_send(message(what)).is_err() {
            debug!(session_id, "the agent is gone or too slow, its session ends");
            self.sessions.remove(session_id);
            self.inputs.push(Input::SessionClosed { session_id: session_id.to_owned() });
        }
    }
}

/// Whether the store has a manager of this Raft id.
fn knows(store: &Store, raft_id: u64) -> bool {
    let mut managers = store.nodes().filter_map(|node| node.manager.as_ref());
    managers.any(|manager| manager.raft_id == raft_id)
}

/// How much a command adds to a batch at most, as [`TAKEN`] counts it.
fn weight(command: &Command) -> usize {
    match command {
        Command::Write { write, .. } => 1 + (write.encoded_len() >> 10),
        Command::Statuses { updates, .. } => 1 + updates.len(),
        _ => 1,
    }
}

fn message(message: session_message::Message) -> Result<SessionMessage, Status> {
    Ok(SessionMessage { message: Some(message) })
}

fn managers(addrs: &[String]) -> session_message::Message {
    session_message::Message::Managers(Managers { addrs: addrs.to_vec() })
}

#[cfg(test)]
mod tests {
    use shoal_api::Network;

    use super::*;

    #[test]
    fn time_goes_on_after_a_leader_whose_clock_was_ahead() {
        let ahead = Clock::start(&Store::default()).now() + Duration::from_secs(3_600);
        let mut store = Store::default();
        let network = Network { id: "n".into(), ..Network::default() };
        store.apply(1, &Batch { changes: vec![network.put()], now_ns: ahead.nanos() }).unwrap();
        assert!(Clock::start(&store).now() >= ahead);
    }

    #[test]
    fn a_step_takes_in_fewer_commands_when_they_are_large() {
        let (reply, _) = tokio::sync::oneshot::channel();
        let updates = vec![shoal_api::TaskStatusUpdate::default(); 200];
        let (session_id, caller) = ("s".into(), "n".into());
        let report = Command::Statuses { session_id, caller, updates, reply };
        assert_eq!(weight(&report), 201);
        assert_eq!(weight(&Command::Close { session_id: "s".into() }), 1);
    }
}
