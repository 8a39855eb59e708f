//! A manager with one node, over real gRPC.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use parking_lot::Mutex;
use shoal_api::assignment_change::Item;
use shoal_api::dispatcher_server::{Dispatcher, DispatcherServer};
use shoal_api::session_message::Message;
use shoal_api::{
    AssignmentChange, Assignments, AssignmentsType, HeartbeatRequest, HeartbeatResponse, Managers,
    NodeRole, RouteNode, SessionMessage, SessionRequest, SessionStart, Standing, Task, TaskState,
    TaskStatus, UpdateTaskStatusRequest, UpdateTaskStatusResponse,
};
use shoal_transport::{Credentials, Peer};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

use super::{eventually, pki};

type Sender = mpsc::UnboundedSender<Result<SessionMessage, Status>>;

#[derive(Default)]
pub struct State {
    pub index: u64,
    pub tasks: BTreeMap<String, Task>,
    /// Named as the leader: this manager is a follower.
    pub leader: Option<String>,
    /// How often it was named.
    pub redirects: usize,
    pub managers: Vec<String>,
    pub requests: Vec<SessionRequest>,
    /// Who asked, by its certificate.
    pub callers: Vec<String>,
    /// Sent at the start of each session.
    pub standing: Option<Standing>,
    /// Why the node is refused.
    pub refusal: Option<String>,
    /// How often it was.
    pub refusals: usize,
    session: Option<(String, Sender)>,
    /// Session and index of each heartbeat.
    pub heartbeats: Vec<(String, u64)>,
    /// The certificates' roots that they named.
    pub issuers: Vec<String>,
    /// Every status that arrived, by task.
    pub statuses: BTreeMap<String, Vec<TaskStatus>>,
    /// The connections have outlived a certificate: refuses one heartbeat.
    pub stale: bool,
    /// How many reports are to fail.
    pub refused_reports: usize,
    pub heartbeat_ms: u64,
    /// Told with each answer to a heartbeat; 0 tells nothing.
    pub told_heartbeat_ms: u64,
}

/// One manager; dropping it closes its port and all connections.
pub struct Manager {
    pub addr: String,
    pub state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

impl Manager {
    pub async fn start() -> Self {
        Self::start_as(pki::credentials("m1", NodeRole::Manager)).await
    }

    pub async fn start_as(credentials: Credentials) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let state = State { index: 1, heartbeat_ms: 1_000, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let service = DispatcherServer::new(Service(Arc::clone(&state)));
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(shoal_transport::accept(listener, &credentials));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { addr, state, server }
    }

    /// Assigns a task to the node, or changes what is wanted of it.
    pub fn put(&self, task: Task) {
        let mut state = self.state.lock();
        state.tasks.insert(task.id.clone(), task.clone());
        state.change(AssignmentChange { remove: false, item: Some(Item::Task(task)) });
    }

    /// Wants another state of a task.
    pub fn desire(&self, id: &str, desired: TaskState) {
        let mut task = self.state.lock().tasks[id].clone();
        task.desired_state = desired.into();
        self.put(task);
    }

    /// Takes a task off the node.
    pub fn remove(&self, id: &str) {
        let mut state = self.state.lock();
        let task = state.tasks.remove(id).unwrap();
        state.change(AssignmentChange { remove: true, item: Some(Item::Task(task)) });
    }

    /// Ends the session, as a manager does that loses its leadership.
    pub fn end_session(&self) {
        self.state.lock().session = None;
    }

    pub fn last_status(&self, id: &str) -> Option<TaskStatus> {
        self.state.lock().statuses.get(id)?.last().cloned()
    }

    /// Waits until a task's state is at least `state`.
    pub async fn reached(&self, id: &str, state: TaskState) -> TaskStatus {
        eventually(&format!("{id} is {}", state.word()), || {
            self.last_status(id).filter(|status| status.state() >= state)
        })
        .await
    }

    pub async fn held(&self, index: u64) {
        eventually(&format!("the node holds {index}"), || {
            let state = self.state.lock();
            state.heartbeats.iter().rev().find(|(_, held)| *held == index).map(drop)
        })
        .await;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.state.lock().session = None;
        self.server.abort();
    }
}

impl State {
    /// Sends one change that follows on what was sent before.
    fn change(&mut self, change: AssignmentChange) {
        let applies_to = self.index;
        self.index += 1;
        self.send(Message::Assignments(Assignments {
            r#type: AssignmentsType::Changes.into(),
            applies_to,
            results_in: self.index,
            changes: vec![change],
        }));
    }

    pub fn send(&mut self, message: Message) {
        if let Some((_, session)) = &self.session {
            // The node may have left.
            let _ = session.send(Ok(SessionMessage { message: Some(message) }));
        }
    }

    fn check(&self, session_id: &str) -> Result<(), Status> {
        match &self.session {
            Some((id, _)) if id == session_id => Ok(()),
            _ => Err(Status::failed_precondition("no such session")),
        }
    }
}

#[tonic::async_trait]
impl Dispatcher for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>().unwrap().identity.clone().unwrap();
        let mut state = self.0.lock();
        if let Some(refusal) = state.refusal.clone() {
            state.refusals += 1;
            return Err(Status::permission_denied(refusal));
        }
        if let Some(leader) = &state.leader {
            let mut status = Status::failed_precondition("this manager is not the leader");
            status.metadata_mut().insert("shoal-leader", leader.parse().unwrap());
            state.redirects += 1;
            return Err(status);
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        state.requests.push(request.into_inner());
        state.callers.push(peer.node_id);
        let session_id = format!("s{}", state.requests.len());
        state.session = Some((session_id.clone(), sender));
        let heartbeat_period_ns = state.heartbeat_ms * 1_000_000;
        state.send(Message::Start(SessionStart { session_id, heartbeat_period_ns }));
        let addrs = state.managers.clone();
        state.send(Message::Managers(Managers { addrs }));
        if let Some(standing) = state.standing.clone() {
            state.send(Message::Standing(standing));
        }
        let node =
            RouteNode { number: 1, node_id: "node1".into(), data_path_addr: "192.0.2.1".into() };
        let items = state.tasks.values().cloned().map(Item::Task).chain([Item::Node(node)]);
        let changes =
            items.map(|item| AssignmentChange { remove: false, item: Some(item) }).collect();
        let results_in = state.index;
        state.send(Message::Assignments(Assignments {
            r#type: AssignmentsType::Complete.into(),
            applies_to: 0,
            results_in,
            changes,
        }));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock();
        if std::mem::take(&mut state.stale) {
            return Err(Status::unauthenticated("connect anew"));
        }
        state.check(&request.session_id)?;
        state.heartbeats.push((request.session_id, request.held_index));
        state.issuers.push(request.issuer_digest);
        let heartbeat_period_ns = state.told_heartbeat_ms * 1_000_000;
        Ok(Response::new(HeartbeatResponse { heartbeat_period_ns }))
    }

    async fn update_task_status(
        &self,
        request: Request<UpdateTaskStatusRequest>,
    ) -> Result<Response<UpdateTaskStatusResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock();
        state.check(&request.session_id)?;
        if state.refused_reports > 0 {
            state.refused_reports -= 1;
            return Err(Status::unavailable("not now"));
        }
        for update in request.updates {
            let status = update.status.unwrap();
            state.statuses.entry(update.task_id).or_default().push(status);
        }
        Ok(Response::new(UpdateTaskStatusResponse {}))
    }
}
