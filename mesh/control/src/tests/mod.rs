//! A leader with its store and nodes, driven by hand, and what each role promises.
//!
//! The bed commits every batch at the next index, as Raft would, and has one session per node.

mod allocator;
mod cluster;
mod dispatcher;
mod founding;
mod membership;
mod replicated;
mod requests;
mod scheduler;
mod sessions;
mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use shoal_api::time::Timestamp;
use shoal_api::{
    Assignments, Caller, Cluster, ContainerSpec, CreateServiceRequest, EndpointSpec, JoinRequest,
    JoinTokens, Node, NodeRole, NodeSpec, PortConfig, RemoveServiceRequest, RestartPolicy, RootCa,
    Service, ServiceSpec, SessionRequest, SigningCa, Task, TaskSpec, TaskState, TaskStatus,
    TaskStatusUpdate, UpdateNodeRequest, UpdateServiceRequest, Write, token, write,
};

use crate::{Answer, Control, Founding, Input, Refusal, RefusalKind, Step, Store};

/// A leader with its store.
pub(crate) struct Bed {
    pub(crate) store: Store,
    pub(crate) control: Control,
    pub(crate) now: Timestamp,
    /// Everything that was sent, by session, oldest first.
    pub(crate) sent: Vec<(String, Assignments)>,
    /// Changes and bytes of the largest batches yet.
    pub(crate) largest: (usize, usize),
    ticket: u64,
}

/// The session that a node opens.
pub(crate) fn session(node: &str) -> String {
    format!("session-of-{node}")
}

/// Hex digests of roots, and a token's secrets.
pub(crate) const ROOT: &str = "1111111111111111111111111111111111111111111111111111111111111111";
pub(crate) const NEXT: &str = "2222222222222222222222222222222222222222222222222222222222222222";
pub(crate) const WORKER: &str = "worker0secret0worker0secr";
pub(crate) const MANAGER: &str = "manager0secret0manager0se";

/// The token of the first root for that role.
pub(crate) fn token_for(role: NodeRole) -> String {
    let secret = if role == NodeRole::Manager { MANAGER } else { WORKER };
    token::compose(ROOT, secret).expect("it is a digest")
}

/// What a founder brings whose tasks live in `subnet`.
pub(crate) fn founding(subnet: &str) -> Founding {
    let tokens =
        JoinTokens { worker: token_for(NodeRole::Worker), manager: token_for(NodeRole::Manager) };
    let signing = SigningCa { cert_pem: "ROOT".into(), key_pem: "KEY".into() };
    let root_ca = RootCa {
        signing: Some(signing),
        digest: ROOT.into(),
        tokens: Some(tokens),
        ..RootCa::default()
    };
    let size = subnet.split_once('/').map_or(0, |(_, size)| size.parse().expect("a number"));
    Founding {
        node: node_request("n1", NodeRole::Manager),
        cluster_id: "c1".into(),
        root_ca,
        address_pools: if subnet.is_empty() { Vec::new() } else { vec![subnet.to_owned()] },
        subnet_size: size,
        ..Founding::default()
    }
}

/// A node asks for a session.
pub(crate) fn opened(session_id: &str, node: &str, instance: &str) -> Input {
    let (node_id, instance) = (node.to_owned(), instance.to_owned());
    let request = SessionRequest { node_id, instance, ..SessionRequest::default() };
    Input::SessionOpened { session_id: session_id.into(), caller: node.into(), request }
}

/// A heartbeat of a node with a certificate of the first root.
pub(crate) fn beat(node: &str, held_index: u64) -> Input {
    Input::Heartbeat {
        session_id: session(node),
        caller: node.into(),
        held_index,
        issuer_digest: ROOT.into(),
    }
}

pub(crate) fn node_request(node: &str, role: NodeRole) -> JoinRequest {
    let spec = NodeSpec::default();
    let number = node.trim_start_matches(|c: char| !c.is_ascii_digit());
    JoinRequest {
        node_id: node.into(),
        spec: Some(spec),
        description: None,
        addr: format!("10.88.0.{number}:2377"),
        data_path_addr: format!("10.88.0.{number}"),
        token: token_for(role),
        ..JoinRequest::default()
    }
}

/// A service of `replicas` tasks that publishes `ports` as (published, target).
pub(crate) fn spec(name: &str, replicas: u64, ports: &[(u32, u32)]) -> ServiceSpec {
    let container = ContainerSpec { image: "rootfs:/".into(), ..ContainerSpec::default() };
    let ports = ports.iter().map(|&(published_port, target_port)| PortConfig {
        published_port,
        target_port,
        ..PortConfig::default()
    });
    ServiceSpec {
        name: name.into(),
        task: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
        replicas,
        endpoint: Some(EndpointSpec { ports: ports.collect() }),
        ..ServiceSpec::default()
    }
}

impl Bed {
    /// A cluster with one manager, `n1`, and workers up to `n<nodes>`, all ready.
    pub(crate) fn new(nodes: u32) -> Self {
        Self::with_subnet(nodes, "")
    }

    pub(crate) fn with_subnet(nodes: u32, subnet: &str) -> Self {
        let now = Timestamp(1_000_000_000_000);
        let store = Store::default();
        let control = Control::new(&store, 7, now, &BTreeMap::new());
        let mut bed = Self { store, control, now, sent: Vec::new(), largest: (0, 0), ticket: 0 };
        let founding = Box::new(founding(subnet));
        bed.step(vec![Input::Bootstrap { id: 0, founding }]);
        for number in 2..=nodes {
            let join = node_request(&format!("n{number}"), NodeRole::Worker);
            bed.write(write::Write::Join(join)).expect("a worker may join");
        }
        for number in 1..=nodes {
            bed.open(&format!("n{number}"));
        }
        bed
    }

    /// Steps, commits, sends; and again while the leader has more to do at once.
    pub(crate) fn step(&mut self, inputs: Vec<Input>) -> Step {
        let mut first = self.step_once(inputs);
        while self.control.deadline().is_some_and(|at| at <= self.now) {
            let more = self.step_once(Vec::new());
            first.closed.extend(more.closed);
        }
        first
    }

    fn step_once(&mut self, inputs: Vec<Input>) -> Step {
        let step = self.control.step(&self.store, inputs, self.now);
        if let Some(batch) = &step.batch {
            let (changes, bytes) = self.largest;
            self.largest = (changes.max(batch.changes.len()), bytes.max(batch.encoded_len()));
            let index = self.store.index() + 1;
            self.store.apply(index, batch).expect("a leader's own batch holds");
            self.control.committed(index);
        }
        self.sent.extend(self.control.assignments(&self.store));
        step
    }

    /// Lets time pass with every node alive, acknowledging all it was sent.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let left = end.since(self.now);
            self.now = self.now + left.min(Duration::from_millis(500));
            let nodes: Vec<_> = self.store.nodes().map(|node| node.id.clone()).collect();
            self.acknowledge(&nodes);
        }
    }

    /// A heartbeat of each node, whose kernel holds all that was committed.
    pub(crate) fn acknowledge(&mut self, nodes: &[String]) {
        let held_index = self.store.index();
        let beats = nodes.iter().map(|node| beat(node, held_index)).collect();
        self.step(beats);
    }

    pub(crate) fn open(&mut self, node: &str) -> Step {
        self.step(vec![opened(&session(node), node, "")])
    }

    pub(crate) fn write(&mut self, write: write::Write) -> Result<Answer, Refusal> {
        self.ticket += 1;
        let write = Write { write: Some(write) };
        let input = Input::Write { id: self.ticket, caller: Caller::default(), write };
        let mut step = self.step(vec![input]);
        match (step.refused.pop(), step.on_commit.pop()) {
            (Some((id, refusal)), None) if id == self.ticket => Err(refusal),
            (None, Some((id, answer))) if id == self.ticket => Ok(answer),
            other => panic!("one answer per ticket, not {other:?}"),
        }
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) -> Result<Answer, Refusal> {
        let request = CreateServiceRequest { spec: Some(spec) };
        self.write(write::Write::CreateService(request))
    }

    pub(crate) fn update(
        &mut self,
        name: &str,
        edit: impl FnOnce(&mut ServiceSpec),
    ) -> Result<Answer, Refusal> {
        let service = self.service(name);
        let mut spec = service.spec.clone().expect("services have specs");
        edit(&mut spec);
        self.write(write::Write::UpdateService(UpdateServiceRequest {
            service_id: service.id.clone(),
            version: service.version(),
            spec: Some(spec),
        }))
    }

    pub(crate) fn remove(&mut self, name: &str) -> Result<Answer, Refusal> {
        let request = RemoveServiceRequest { service_id: name.into() };
        self.write(write::Write::RemoveService(request))
    }

    pub(crate) fn update_node(&mut self, id: &str, edit: impl FnOnce(&mut NodeSpec)) {
        let write = self.node_update(id, edit);
        self.write(write).expect("the node may be updated");
    }

    pub(crate) fn node_update(&self, id: &str, edit: impl FnOnce(&mut NodeSpec)) -> write::Write {
        let node = self.store.node(id).expect("the node is known");
        let mut spec = node.spec.clone().expect("nodes have specs");
        edit(&mut spec);
        let (node_id, version) = (id.to_owned(), node.version());
        write::Write::UpdateNode(UpdateNodeRequest { node_id, version, spec: Some(spec) })
    }

    pub(crate) fn set_role(&mut self, id: &str, role: NodeRole) -> Result<Answer, Refusal> {
        let write = self.node_update(id, |spec| spec.set_role(role));
        self.write(write)
    }

    /// The write is refused with this text, and the store is as it was.
    pub(crate) fn check_refused(&mut self, write: write::Write, kind: RefusalKind, text: &str) {
        let before = self.store.clone();
        let refusal = self.write(write).expect_err("the write is refused");
        assert_eq!((refusal.kind(), refusal.to_string().as_str()), (kind, text));
        assert_eq!(self.store, before, "a refusal leaves nothing behind");
    }

    pub(crate) fn node(&self, id: &str) -> Node {
        Node::clone(self.store.node(id).expect("the node is known"))
    }

    pub(crate) fn cluster(&self) -> Cluster {
        Cluster::clone(self.store.cluster().expect("there is a cluster"))
    }

    pub(crate) fn service(&self, name: &str) -> Service {
        Service::clone(self.store.service_by_name(name).expect("the service is there"))
    }

    /// The tasks of a service that are meant to run, by slot.
    pub(crate) fn live(&self, name: &str) -> Vec<Task> {
        let tasks = self.all(name).into_iter();
        tasks.filter(|task| task.desired_state() <= TaskState::Running).collect()
    }

    /// All tasks of a service by slot, old before new.
    pub(crate) fn all(&self, name: &str) -> Vec<Task> {
        let tasks = self.store.tasks().filter(|task| task.service_name == name);
        let mut tasks: Vec<_> = tasks.map(|task| Task::clone(task)).collect();
        let created = |task: &Task| task.meta.as_ref().map_or(0, |meta| meta.created_at_ns);
        tasks.sort_by_key(|task| (task.slot, created(task), task.desired_state != 800));
        tasks
    }

    pub(crate) fn report(&mut self, task: &Task, state: TaskState) {
        let status = TaskStatus { state: state.into(), ..TaskStatus::default() };
        self.report_as(&task.node_id.clone(), task, status);
    }

    pub(crate) fn report_as(&mut self, node: &str, task: &Task, status: TaskStatus) {
        let update = TaskStatusUpdate { task_id: task.id.clone(), status: Some(status) };
        let (session_id, caller) = (session(node), node.to_owned());
        self.step(vec![Input::TaskStatuses { id: 1, session_id, caller, updates: vec![update] }]);
    }

    /// Reports every live task of a service as running, where it may run.
    pub(crate) fn run_all(&mut self, name: &str) {
        for task in self.live(name) {
            if task.desired_state() == TaskState::Running && task.state() >= TaskState::Assigned {
                self.report(&task, TaskState::Running);
            }
        }
    }
}

/// A restart policy with that delay.
pub(crate) fn restart_after(delay: Duration) -> Option<RestartPolicy> {
    let delay_ns = u64::try_from(delay.as_nanos()).ok();
    Some(RestartPolicy { delay_ns, ..RestartPolicy::default() })
}
