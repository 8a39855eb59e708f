//! One node's agent: a session that may break, tasks that start, fail and stop in their own time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use shoal_api::assignment_change::Item;
use shoal_api::id::IdSource;
use shoal_api::time::Timestamp;
use shoal_api::{
    Assignments, AssignmentsType, Caller, RenewWrite, RouteBackend, RouteNode, RouteService,
    SessionRequest, Task, TaskState, TaskStatus, TaskStatusUpdate, Write, write,
};
use shoal_control::Input;

use crate::operator::Certificate;
use crate::world::Dice;

/// A task as the node runs it.
#[derive(Clone, Debug)]
pub struct Run {
    pub task: Task,
    pub state: TaskState,
    /// When it takes its next step.
    next: Timestamp,
    /// State that the leader confirmed.
    confirmed: TaskState,
}

/// One node's agent.
#[derive(Debug)]
pub struct Agent {
    pub node: String,
    pub certificate: Certificate,
    /// Root under which the leader wants its certificate.
    pub wanted_issuer: Option<String>,
    /// The open ticket of a renewal.
    pub renewing: Option<u64>,
    pub session: Option<String>,
    pub held: u64,
    pub runs: BTreeMap<String, Run>,
    pub nodes: BTreeMap<u32, RouteNode>,
    pub services: BTreeMap<u32, RouteService>,
    pub backends: BTreeMap<u32, RouteBackend>,
    /// It was declared down, and has not had its complete set since.
    pub was_down: bool,
    /// This start of its daemon.
    pub instance: String,
    /// A daemon that was started on a copy of the node's state.
    pub copy: Option<Copied>,
    /// Cut off or crashed until then.
    pub away_until: Timestamp,
    /// What is on its way, in order, and when it arrives.
    pub inbox: VecDeque<(Timestamp, Assignments)>,
    /// The statuses that the open ticket stands for.
    in_flight: Option<(u64, Vec<(String, TaskState)>)>,
    retry_at: Timestamp,
    beat_at: Timestamp,
}

/// A daemon on a copy of a node's state: it wants the node's session, and does nothing with it.
#[derive(Debug)]
pub struct Copied {
    pub instance: String,
    pub session: Option<String>,
    pub retry_at: Timestamp,
}

impl Copied {
    fn tick(&mut self, node: &str, now: Timestamp, ids: &mut IdSource) -> Option<Input> {
        if self.session.is_some() || now < self.retry_at {
            return None;
        }
        let session_id = ids.next_id();
        self.session = Some(session_id.clone());
        Some(open(session_id, node, &self.instance))
    }
}

fn open(session_id: String, node: &str, instance: &str) -> Input {
    let (node_id, instance) = (node.to_owned(), instance.to_owned());
    let request = SessionRequest { node_id, instance, ..SessionRequest::default() };
    Input::SessionOpened { session_id, caller: node.to_owned(), request }
}

impl Agent {
    pub fn new(node: String, certificate: Certificate) -> Self {
        Self {
            node,
            certificate,
            wanted_issuer: None,
            renewing: None,
            session: None,
            held: 0,
            runs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            was_down: false,
            instance: "first".into(),
            copy: None,
            away_until: Timestamp(0),
            inbox: VecDeque::new(),
            in_flight: None,
            retry_at: Timestamp(0),
            beat_at: Timestamp(0),
        }
    }

    /// The session is over, as this side sees it.
    pub fn disconnect(&mut self, now: Timestamp, dice: &mut Dice) {
        self.session = None;
        self.inbox.clear();
        self.in_flight = None;
        self.wanted_issuer = None;
        self.renewing = None;
        self.retry_at = now + dice.up_to(Duration::from_secs(1));
    }

    /// The node lost its power: nothing that ran on it does now, and its daemon is another one.
    pub fn lose_power(&mut self, ids: &mut IdSource) {
        self.instance = ids.next_id();
        for run in self.runs.values_mut().filter(|run| !run.state.is_terminal()) {
            run.state = TaskState::Failed;
        }
    }

    /// One tick: what the node does, and what it tells the leader.
    pub fn tick(&mut self, now: Timestamp, dice: &mut Dice, ids: &mut IdSource) -> Vec<Input> {
        self.step_tasks(now, dice);
        let copied = self.copy.as_mut().and_then(|copy| copy.tick(&self.node, now, ids));
        let mut inputs = self.tick_session(now, dice, ids);
        inputs.extend(copied);
        inputs
    }

    fn tick_session(&mut self, now: Timestamp, dice: &mut Dice, ids: &mut IdSource) -> Vec<Input> {
        if now < self.away_until {
            return Vec::new();
        }
        let Some(session_id) = self.session.clone() else {
            if now < self.retry_at {
                return Vec::new();
            }
            let session_id = ids.next_id();
            self.session = Some(session_id.clone());
            self.beat_at = now + Duration::from_secs(1);
            return vec![open(session_id, &self.node, &self.instance)];
        };
        while self.inbox.front().is_some_and(|(at, _)| *at <= now) {
            let (_, message) = self.inbox.pop_front().expect("it was looked at");
            self.apply(message, now, dice);
        }
        let mut inputs = Vec::new();
        if now >= self.beat_at {
            self.beat_at = now + Duration::from_secs(1);
            let held_index = self.held;
            inputs.push(Input::Heartbeat {
                session_id: session_id.clone(),
                caller: self.node.clone(),
                held_index,
                issuer_digest: self.certificate.issuer.clone(),
            });
        }
        inputs.extend(self.renew(ids));
        inputs.extend(self.report(session_id, ids));
        inputs
    }

    /// Asks for a certificate under the root that issues now.
    fn renew(&mut self, ids: &mut IdSource) -> Option<Input> {
        let wanted = self.wanted_issuer.as_ref()?;
        if self.renewing.is_some() || *wanted == self.certificate.issuer {
            return None;
        }
        let id = ids.next_u64();
        self.renewing = Some(id);
        let node_id = self.node.clone();
        let write = write::Write::Renew(RenewWrite { node_id, ..RenewWrite::default() });
        let write = Write { write: Some(write) };
        Some(Input::Write { id, caller: Caller::default(), write })
    }

    /// What became of the statuses under a ticket: `stored`, or to be sent again.
    pub fn answered(&mut self, ticket: u64, stored: bool) {
        let Some((_, told)) = self.in_flight.take_if(|(open, _)| *open == ticket) else { return };
        for (id, state) in told.into_iter().filter(|_| stored) {
            if let Some(run) = self.runs.get_mut(&id) {
                run.confirmed = state;
            }
        }
    }

    fn report(&mut self, session_id: String, ids: &mut IdSource) -> Option<Input> {
        if self.in_flight.is_some() {
            return None;
        }
        let news = self.runs.values().filter(|run| run.state > run.confirmed);
        let told: Vec<_> = news.map(|run| (run.task.id.clone(), run.state)).collect();
        if told.is_empty() {
            return None;
        }
        let updates = told.iter().map(|(task_id, state)| {
            let status = TaskStatus { state: (*state).into(), ..TaskStatus::default() };
            TaskStatusUpdate { task_id: task_id.clone(), status: Some(status) }
        });
        let updates = updates.collect();
        let id = ids.next_u64();
        self.in_flight = Some((id, told));
        let caller = self.node.clone();
        Some(Input::TaskStatuses { id, session_id, caller, updates })
    }

    fn apply(&mut self, message: Assignments, now: Timestamp, dice: &mut Dice) {
        let mut kept = BTreeMap::new();
        if message.r#type() == AssignmentsType::Complete {
            kept = std::mem::take(&mut self.runs);
            self.was_down = false;
            self.nodes.clear();
            self.services.clear();
            self.backends.clear();
        } else {
            assert_eq!(message.applies_to, self.held, "changes apply to what the node holds");
        }
        for change in message.changes {
            match change.item.expect("a change names an item") {
                Item::Task(task) if change.remove => drop(self.runs.remove(&task.id)),
                Item::Task(task) => self.put_task(task, &mut kept, now, dice),
                Item::Node(node) => put(&mut self.nodes, node.number, node, change.remove),
                Item::Service(service) => {
                    put(&mut self.services, service.number, service, change.remove);
                }
                Item::Backend(backend) => {
                    put(&mut self.backends, backend.number, backend, change.remove);
                }
            }
        }
        assert!(message.results_in >= self.held, "the index only grows");
        self.held = message.results_in;
    }

    fn put_task(
        &mut self,
        task: Task,
        kept: &mut BTreeMap<String, Run>,
        now: Timestamp,
        dice: &mut Dice,
    ) {
        let known = self.runs.remove(&task.id).or_else(|| kept.remove(&task.id));
        let (state, confirmed) = known
            .map_or((TaskState::Assigned, TaskState::Assigned), |run| (run.state, run.confirmed));
        // After a crash the node may know less than the leader: it ran and does not any more.
        let state = if task.state() > state { TaskState::Failed } else { state };
        let next = now + dice.up_to(Duration::from_millis(600));
        self.runs.insert(task.id.clone(), Run { task, state, next, confirmed });
    }

    /// Tasks go on also while the agent is away.
    fn step_tasks(&mut self, now: Timestamp, dice: &mut Dice) {
        for run in self.runs.values_mut() {
            if now < run.next || run.state.is_terminal() {
                continue;
            }
            run.next = now + dice.up_to(Duration::from_millis(600));
            let desired = run.task.desired_state();
            run.state = match run.state {
                _ if desired > TaskState::Running => TaskState::Shutdown,
                TaskState::Assigned => TaskState::Accepted,
                TaskState::Accepted => TaskState::Preparing,
                TaskState::Preparing if dice.one_in(40) => TaskState::Rejected,
                TaskState::Preparing => TaskState::Ready,
                TaskState::Ready if desired < TaskState::Running => TaskState::Ready,
                TaskState::Ready => TaskState::Starting,
                TaskState::Starting => TaskState::Running,
                TaskState::Running if dice.one_in(60) => TaskState::Failed,
                TaskState::Running if dice.one_in(120) => TaskState::Complete,
                state => state,
            };
        }
    }
}

fn put<T>(map: &mut BTreeMap<u32, T>, number: u32, item: T, remove: bool) {
    if remove {
        map.remove(&number);
    } else {
        map.insert(number, item);
    }
}
