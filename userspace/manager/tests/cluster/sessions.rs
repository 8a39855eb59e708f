//! Agents' sessions with the leader.

use std::time::{Duration, Instant};

use shoal_api::{
    Assignments, AssignmentsType, CreateServiceRequest, HeartbeatRequest, ListRequest, NodeState,
    SessionMessage, SessionRequest, Task, TaskState, TaskStatus, TaskStatusUpdate,
    UpdateTaskStatusRequest, assignment_change, session_message,
};
use shoal_manager::LEADER;
use tonic::{Code, Streaming};

use crate::harness::{Cluster, Host, PATIENCE, description, eventually, spec};

fn request(node_id: &str) -> SessionRequest {
    SessionRequest {
        node_id: node_id.into(),
        instance: "one".into(),
        description: Some(description(node_id)),
        data_path_addr: "127.0.0.1".into(),
        ..SessionRequest::default()
    }
}

/// An agent as far as its stream goes.
struct Agent {
    session_id: String,
    managers: Vec<String>,
    messages: Streaming<SessionMessage>,
}

impl Agent {
    async fn open(host: &Host) -> Self {
        let messages =
            host.dispatcher().session(request(&host.node_id)).await.unwrap().into_inner();
        let mut agent = Self { session_id: String::new(), managers: Vec::new(), messages };
        match agent.next().await {
            session_message::Message::Start(start) => {
                assert_eq!(start.heartbeat_period_ns, 1_000_000_000);
                agent.session_id = start.session_id;
            }
            other => panic!("a session starts with its id: {other:?}"),
        }
        match agent.next().await {
            session_message::Message::Managers(managers) => agent.managers = managers.addrs,
            other => panic!("then come the managers: {other:?}"),
        }
        agent
    }

    async fn next(&mut self) -> session_message::Message {
        let next = tokio::time::timeout(PATIENCE, self.messages.message()).await.unwrap();
        next.unwrap().expect("the session goes on").message.unwrap()
    }

    async fn assignments(&mut self) -> Assignments {
        loop {
            if let session_message::Message::Assignments(assignments) = self.next().await {
                return assignments;
            }
        }
    }

    /// The next task that comes down, and the set that it came with.
    async fn task(&mut self) -> (Task, Assignments) {
        loop {
            let assignments = self.assignments().await;
            let task = assignments.changes.iter().find_map(|change| match &change.item {
                Some(assignment_change::Item::Task(task)) if !change.remove => Some(task.clone()),
                _ => None,
            });
            if let Some(task) = task {
                return (task, assignments);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_a_complete_set_and_then_changes_and_its_states_are_stored() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let mut agent = Agent::open(host).await;
    assert_eq!(agent.managers, [host.addr.as_str()]);
    let complete = agent.assignments().await;
    assert_eq!(complete.r#type(), AssignmentsType::Complete);

    let create = CreateServiceRequest { spec: Some(spec("web", 1)) };
    host.control().create_service(create).await.unwrap();
    let (task, changes) = agent.task().await;
    assert_eq!(changes.r#type(), AssignmentsType::Changes);
    assert!(changes.results_in > changes.applies_to);
    assert_eq!((task.service_name.as_str(), task.node_id.as_str()), ("web", &*host.node_id));

    let status = TaskStatus { state: TaskState::Running.into(), ..TaskStatus::default() };
    let update = TaskStatusUpdate { task_id: task.id.clone(), status: Some(status) };
    let session_id = agent.session_id.clone();
    let updates = UpdateTaskStatusRequest { session_id, updates: vec![update] };
    host.dispatcher().update_task_status(updates).await.unwrap();
    // It is answered when it is stored, so no waiting here.
    let tasks = host.control().list_tasks(ListRequest {}).await.unwrap().into_inner().tasks;
    let stored = tasks.iter().find(|stored| stored.id == task.id).unwrap();
    assert_eq!(stored.state(), TaskState::Running);

    let unknown = HeartbeatRequest { session_id: "nope".into(), ..HeartbeatRequest::default() };
    let unknown = host.dispatcher().heartbeat(unknown).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sends_an_agent_to_the_leader() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let away = cluster.hosts[follower]
        .dispatcher()
        .session(request(&cluster.hosts[follower].node_id))
        .await
        .unwrap_err();
    assert_eq!(away.code(), Code::FailedPrecondition);
    let to = away.metadata().get(LEADER).unwrap().to_str().unwrap();
    assert_eq!(to, cluster.hosts[leader].addr);
    let agent = Agent::open(&cluster.hosts[leader]).await;
    assert_eq!(agent.managers.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_no_part_in_the_session_of_another() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let worker = cluster.worker(9).await;
    let mut dispatcher = worker.dispatcher(host);
    let refused = dispatcher.session(request(&host.node_id)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let agent = Agent::open(host).await;
    let session_id = agent.session_id.clone();
    let beat = HeartbeatRequest { session_id: session_id.clone(), ..HeartbeatRequest::default() };
    let refused = dispatcher.heartbeat(beat).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let updates = UpdateTaskStatusRequest { session_id, updates: Vec::new() };
    let refused = dispatcher.update_task_status(updates).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_while_its_heartbeats_come_and_down_when_they_stop() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let agent = Agent::open(host).await;
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    let mut dispatcher = host.dispatcher();
    for _ in 0..10 {
        beat.tick().await;
        let request = HeartbeatRequest {
            session_id: agent.session_id.clone(),
            ..HeartbeatRequest::default()
        };
        dispatcher.heartbeat(request).await.unwrap();
        assert_eq!(state(host).await, NodeState::Ready);
    }
    let last = Instant::now();
    eventually("the silent node is down", || async {
        (state(host).await == NodeState::Down).then_some(())
    })
    .await;
    let silent = last.elapsed();
    println!("a silent node was down after {silent:?}");
    assert!(silent > Duration::from_millis(2_500) && silent < Duration::from_secs(5), "{silent:?}");
    // The session ended with it; a new one makes the node ready again.
    Agent::open(host).await;
    eventually("the node is ready", || async {
        (state(host).await == NodeState::Ready).then_some(())
    })
    .await;
}

async fn state(host: &Host) -> NodeState {
    let nodes = host.control().list_nodes(ListRequest {}).await.unwrap().into_inner().nodes;
    nodes.iter().find(|node| node.id == host.node_id).unwrap().state()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_session_of_the_same_node_ends_the_older() {
    let cluster = Cluster::start(1).await;
    let mut older = Agent::open(&cluster.hosts[0]).await;
    let newer = Agent::open(&cluster.hosts[0]).await;
    assert_ne!(older.session_id, newer.session_id);
    let end = loop {
        let next = tokio::time::timeout(PATIENCE, older.messages.message()).await.unwrap();
        if let Err(reason) = next {
            break reason;
        }
    };
    assert_eq!(end.code(), Code::FailedPrecondition, "{end}");
}
