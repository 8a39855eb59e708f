//! A node's agent and its daemon's part in the cluster: a session that breaks, tasks that start, fail
//! and stop in their own time, a manager that starts and ends as the cluster says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use openraft::{AsyncRuntime, Instant as _};
use openraft_rt_sim::{SimInstant, SimRuntime};
use shoal_api::assignment_change::Item;
use shoal_api::{
    Assignments, AssignmentsType, RenewWrite, SessionRequest, Task, TaskState, TaskStatus,
    TaskStatusUpdate, Write, write, write_result,
};
use tokio::sync::{mpsc, oneshot};

use super::desk::{Command, ToAgent};
use super::front::{End, write_through};
use super::host::Host;
use super::leader::session_queue;
use super::manager::{self, Running, Start};
use super::network::{Sending, call};
use super::world::World;

const TICK: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_millis(1_500);

/// A task as the node runs it.
struct Run {
    task: Task,
    state: TaskState,
    next: SimInstant,
    /// State that the leader confirmed.
    confirmed: TaskState,
}

struct Session {
    id: String,
    leader: u32,
    messages: mpsc::Receiver<ToAgent>,
    inbox: VecDeque<(SimInstant, ToAgent)>,
    beat_at: SimInstant,
}

/// What became of the wish for a session.
enum Opened {
    Session(mpsc::Receiver<ToAgent>),
    NotLeader,
    Removed,
}

struct Agent {
    world: Arc<World>,
    host: Arc<Host>,
    node_id: String,
    boots: u64,
    session: Option<Session>,
    runs: BTreeMap<String, Run>,
    held: u64,
    retry_at: SimInstant,
}

/// Runs the node of a host, whenever it has power and is a member.
pub(super) async fn run(world: Arc<World>, host: Arc<Host>) {
    let mut agent: Option<Agent> = None;
    loop {
        SimRuntime::sleep(TICK).await;
        let (powered, boots, node_id) = {
            let state = host.state.lock();
            (state.powered, state.boots, state.node_id.clone())
        };
        let Some(node_id) = node_id else {
            agent = None;
            host.runs.lock().clear();
            continue;
        };
        let agent = match &mut agent {
            Some(agent) if agent.node_id == node_id => agent,
            other => other.insert(Agent::new(&world, &host, node_id, boots)),
        };
        if agent.boots != boots {
            agent.boots = boots;
            agent.disconnect();
            // Nothing that ran does now.
            for run in agent.runs.values_mut().filter(|run| !run.state.is_terminal()) {
                run.state = TaskState::Failed;
            }
        }
        if powered {
            agent.step_tasks();
            if agent.tick().await.is_none() {
                agent.disconnect();
            }
        }
        let live = agent.runs.iter().filter(|(_, run)| !run.state.is_terminal());
        *host.runs.lock() = live.map(|(id, _)| id.clone()).collect();
    }
}

impl Agent {
    fn new(world: &Arc<World>, host: &Arc<Host>, node_id: String, boots: u64) -> Self {
        Self {
            world: world.clone(),
            host: host.clone(),
            node_id,
            boots,
            session: None,
            runs: BTreeMap::new(),
            held: 0,
            retry_at: SimInstant::now(),
        }
    }

    fn disconnect(&mut self) {
        if let Some(session) = self.session.take()
            && self.world.dice.one_in(2)
        {
            // The leader may learn of the broken stream, or only miss the heartbeats.
            let session_id = session.id;
            if let Some(running) = self.world.running(session.leader) {
                running.desk.send(Command::Close { session_id });
            }
        }
        self.retry_at = SimInstant::now() + self.world.dice.between_ms(50, 800);
    }

    fn sending(&self, to: u32) -> Sending {
        Sending { from: self.host.number, to, ttl: PATIENCE, doubles: false }
    }

    /// `None`: the session is over.
    async fn tick(&mut self) -> Option<()> {
        if self.session.is_none() {
            if SimInstant::now() >= self.retry_at {
                self.open().await?;
            }
            return Some(());
        }
        self.listen().await?;
        self.beat().await?;
        self.report().await
    }

    async fn open(&mut self) -> Option<()> {
        let to = self.world.any_host();
        let session_id = self.world.dice.id();
        let request = SessionRequest {
            node_id: self.node_id.clone(),
            instance: format!("{}-{}", self.node_id, self.boots),
            ..SessionRequest::default()
        };
        let id = session_id.clone();
        let asked = call(&self.world, self.sending(to), move |running: Arc<Running>| {
            let (session_id, request) = (session_id.clone(), request.clone());
            async move {
                // As every RPC does: a removed node is refused by whatever manager it asks.
                let store = running.view.store();
                if store.cluster().is_some_and(|cluster| cluster.has_removed(&request.node_id)) {
                    return Some(Opened::Removed);
                }
                let (messages, queue) = session_queue();
                let open = Command::Open { session_id, request: Box::new(request), messages };
                let taken = running.desk.send(open);
                Some(if taken { Opened::Session(queue) } else { Opened::NotLeader })
            }
        });
        let messages = match asked.await.ok()? {
            Opened::Session(messages) => messages,
            Opened::NotLeader => return None,
            Opened::Removed => {
                self.world.trace.note(format_args!("{} was removed", self.node_id));
                self.world.leave(&self.host);
                return None;
            }
        };
        let beat_at = SimInstant::now() + HEARTBEAT;
        self.session = Some(Session { id, leader: to, messages, inbox: VecDeque::new(), beat_at });
        Some(())
    }

    async fn listen(&mut self) -> Option<()> {
        let session = self.session.as_mut()?;
        let leader = session.leader;
        if self.world.net.passes(leader, self.host.number) {
            self.world.running(leader)?;
            loop {
                match session.messages.try_recv() {
                    Ok(message) => {
                        let arrives = SimInstant::now() + self.world.dice.between_ms(0, 300);
                        let after = session.inbox.back().map_or(arrives, |(at, _)| *at);
                        session.inbox.push_back((arrives.max(after), message));
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return None,
                }
            }
        }
        while let Some(session) = &mut self.session
            && session.inbox.front().is_some_and(|(at, _)| *at <= SimInstant::now())
        {
            match session.inbox.pop_front().expect("it was looked at").1 {
                ToAgent::Assignments(assignments) => self.apply(assignments),
                ToAgent::IsManager(is) => self.follow(is).await,
            }
        }
        Some(())
    }

    async fn beat(&mut self) -> Option<()> {
        let session = self.session.as_mut()?;
        if SimInstant::now() < session.beat_at {
            return Some(());
        }
        session.beat_at = SimInstant::now() + self.host.clock.takes(HEARTBEAT);
        let (to, session_id) = (session.leader, session.id.clone());
        let (held, node_id) = (self.held, self.node_id.clone());
        let asked = call(&self.world, self.sending(to), move |running: Arc<Running>| {
            let (session_id, node_id) = (session_id.clone(), node_id.clone());
            async move {
                let (reply, known) = oneshot::channel();
                running.desk.send(Command::Heartbeat { session_id, node_id, held, reply });
                known.await.ok()
            }
        });
        asked.await.ok().filter(|known| *known).map(drop)
    }

    async fn report(&mut self) -> Option<()> {
        let session = self.session.as_ref()?;
        let news = self.runs.values().filter(|run| run.state > run.confirmed);
        let told: Vec<_> = news.map(|run| (run.task.id.clone(), run.state)).collect();
        if told.is_empty() {
            return Some(());
        }
        let updates = told.iter().map(|(task_id, state)| {
            let status = TaskStatus { state: (*state).into(), ..TaskStatus::default() };
            TaskStatusUpdate { task_id: task_id.clone(), status: Some(status) }
        });
        let updates: Vec<_> = updates.collect();
        let (to, session_id, node_id) = (session.leader, session.id.clone(), self.node_id.clone());
        let asked = call(&self.world, self.sending(to), move |running: Arc<Running>| {
            let (session_id, node_id) = (session_id.clone(), node_id.clone());
            let updates = updates.clone();
            async move {
                let (reply, answer) = oneshot::channel();
                running.desk.send(Command::Statuses { session_id, node_id, updates, reply });
                answer.await.ok().map(|result| result.is_ok())
            }
        });
        if asked.await.ok()? {
            for (id, state) in told {
                if let Some(run) = self.runs.get_mut(&id) {
                    run.confirmed = state;
                }
            }
        }
        Some(())
    }

    fn apply(&mut self, message: Assignments) {
        let mut kept = BTreeMap::new();
        if message.r#type() == AssignmentsType::Complete {
            kept = std::mem::take(&mut self.runs);
        } else if message.applies_to != self.held {
            let (held, to) = (self.held, message.applies_to);
            let node = &self.node_id;
            self.world.judge.complain(format!("{node} holds {held} and got changes to {to}"));
        }
        for change in message.changes {
            match change.item {
                Some(Item::Task(task)) if change.remove => drop(self.runs.remove(&task.id)),
                Some(Item::Task(task)) => self.put_task(task, &mut kept),
                _ => {}
            }
        }
        self.held = message.results_in;
    }

    fn put_task(&mut self, task: Task, kept: &mut BTreeMap<String, Run>) {
        let known = self.runs.remove(&task.id).or_else(|| kept.remove(&task.id));
        let (state, confirmed) = known
            .map_or((TaskState::Assigned, TaskState::Assigned), |run| (run.state, run.confirmed));
        // After a crash the node may know less than the leader: it ran and does not any more.
        let state = if task.state() > state { TaskState::Failed } else { state };
        let next = SimInstant::now() + self.world.dice.between_ms(0, 500);
        self.runs.insert(task.id.clone(), Run { task, state, next, confirmed });
    }

    fn step_tasks(&mut self) {
        let (world, now) = (&self.world, SimInstant::now());
        let unlucky = |n: u64| world.dice.one_in(n) && !world.is_calm();
        for run in self.runs.values_mut() {
            if now < run.next || run.state.is_terminal() {
                continue;
            }
            run.next = now + world.dice.between_ms(0, 500);
            let desired = run.task.desired_state();
            run.state = match run.state {
                _ if desired > TaskState::Running => TaskState::Shutdown,
                TaskState::Assigned => TaskState::Accepted,
                TaskState::Accepted => TaskState::Preparing,
                TaskState::Preparing if unlucky(40) => TaskState::Rejected,
                TaskState::Preparing => TaskState::Ready,
                TaskState::Ready if desired < TaskState::Running => TaskState::Ready,
                TaskState::Ready => TaskState::Starting,
                TaskState::Starting => TaskState::Running,
                TaskState::Running if unlucky(80) => TaskState::Failed,
                TaskState::Running if unlucky(160) => TaskState::Complete,
                state => state,
            };
        }
    }

    /// Starts or ends the manager, as the cluster says; another raft id means another manager.
    async fn follow(&mut self, is_manager: bool) {
        let raft_id = self.host.state.lock().manager.as_ref().map(|start| start.raft_id);
        if !is_manager {
            if raft_id.is_some() {
                self.world.end_manager(&self.host);
            }
            return;
        }
        let renew = write::Write::Renew(RenewWrite {
            node_id: self.node_id.clone(),
            ..RenewWrite::default()
        });
        let to = self.session.as_ref().map_or(0, |session| session.leader);
        let write = Write { write: Some(renew) };
        let End::Stored(result) = write_through(&self.world, self.host.number, to, write).await
        else {
            // It asks again with its next session.
            self.disconnect();
            return;
        };
        let Some(write_result::Result::Joined(joined)) = result.result else { return };
        if joined.raft_id == 0 || raft_id == Some(joined.raft_id) || !self.host.is_powered() {
            return;
        }
        if raft_id.is_some() {
            self.world.end_manager(&self.host);
        }
        let node_id = self.node_id.clone();
        let start = Start { node_id, raft_id: joined.raft_id, founding: None };
        self.host.state.lock().manager = Some(start.clone());
        self.world.trace.note(format_args!("{} becomes manager {}", self.node_id, joined.raft_id));
        if let Err(failure) = manager::start(&self.world, &self.host, start).await {
            self.world.judge.complain(failure);
        }
    }
}
