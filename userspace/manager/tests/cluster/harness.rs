//! Hosts, clusters, and waiting for a fact with a deadline.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use shoal_api::control_client::ControlClient;
use shoal_api::dispatcher_client::DispatcherClient;
use shoal_api::membership_client::MembershipClient;
use shoal_api::{
    ContainerSpec, CreateServiceRequest, EndpointSpec, JoinRequest, JoinResponse, ListRequest,
    NodeDescription, NodeRole, NodeSpec, Service, ServiceSpec, TaskSpec,
};
use shoal_manager::{Config, Manager, Timings};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use crate::wire::Wire;

/// Longer than anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One host: its disk stays, its process comes and goes.
pub struct Host {
    pub node_id: String,
    pub addr: String,
    pub folder: TempDir,
    pub timings: Timings,
    pub wire: Wire,
    /// Where it listens, behind the wire.
    inner: String,
    process: Option<Process>,
}

struct Process {
    runtime: Runtime,
    manager: Manager,
}

impl Host {
    /// A host with an address and nothing running.
    async fn new(number: usize, timings: &Timings) -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = listener.local_addr().unwrap().to_string();
        let wire = Wire::new(inner.clone()).await;
        let host = Self {
            node_id: format!("n{number}"),
            addr: wire.addr.clone(),
            folder: tempfile::tempdir().unwrap(),
            timings: timings.clone(),
            wire,
            inner,
            process: None,
        };
        (host, listener)
    }

    pub fn config(&self) -> Config {
        let timings = self.timings.clone();
        Config { timings, ..Config::new(self.state_dir(), &self.node_id, &self.addr) }
    }

    pub fn state_dir(&self) -> std::path::PathBuf {
        self.folder.path().join("manager")
    }

    pub fn join_request(&self) -> JoinRequest {
        let role = NodeRole::Manager.into();
        JoinRequest {
            node_id: self.node_id.clone(),
            spec: Some(NodeSpec { role, ..NodeSpec::default() }),
            description: Some(description(&self.node_id)),
            addr: self.addr.clone(),
            data_path_addr: "127.0.0.1".into(),
            data_path_port: 0,
            ..JoinRequest::default()
        }
    }

    /// Runs a manager in a process of its own and serves it.
    async fn run<F>(&mut self, start: F, listener: TcpListener)
    where
        F: Future<Output = Result<Manager, shoal_manager::ManagerError>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let manager = runtime.spawn(start).await.unwrap().unwrap();
        let listener = listener.into_std().unwrap();
        let routes = manager.services();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            Server::builder().add_routes(routes).serve_with_incoming(incoming).await
        });
        self.process = Some(Process { runtime, manager });
    }

    pub fn manager(&self) -> &Manager {
        &self.process.as_ref().expect("the host runs").manager
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Stops everything at once, as `kill -9` does.
    pub fn kill(&mut self) {
        let Process { runtime, manager } = self.process.take().expect("the host runs");
        self.wire.close();
        runtime.shutdown_background();
        drop(manager);
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        let Process { runtime, manager } = self.process.take().expect("the host runs");
        manager.shutdown().await;
        self.wire.close();
        runtime.shutdown_background();
    }

    /// Starts it again from its disk, at its address.
    pub async fn restart(&mut self) {
        let inner = self.inner.clone();
        let bind = || async { TcpListener::bind(&inner).await.ok() };
        let listener = eventually("the port is free", bind).await;
        self.wire.open().await;
        self.run(Manager::restart(self.config()), listener).await;
    }

    pub fn channel(&self) -> Channel {
        // The tests stand at the host itself, so that a cut wire is the managers' matter.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.inner)).unwrap();
        endpoint.tcp_nodelay(true).connect_lazy()
    }

    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel())
    }

    pub fn dispatcher(&self) -> DispatcherClient<Channel> {
        DispatcherClient::new(self.channel())
    }

    pub async fn create(&self, name: &str) -> Result<Service, Status> {
        let request = CreateServiceRequest { spec: Some(spec(name, 1)) };
        let response = self.control().create_service(request).await?;
        Ok(response.into_inner().service.expect("a created service comes back"))
    }

    /// Names of all services, sorted.
    pub async fn services(&self) -> Result<Vec<String>, Status> {
        let response = self.control().list_services(ListRequest {}).await?;
        let mut names: Vec<String> =
            response.into_inner().services.iter().map(|service| service.name().into()).collect();
        names.sort();
        Ok(names)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// Some hosts that are managers of one cluster.
pub struct Cluster {
    pub hosts: Vec<Host>,
}

impl Cluster {
    pub async fn start(size: usize) -> Self {
        Self::start_with(size, &Timings::default()).await
    }

    pub async fn start_with(size: usize, timings: &Timings) -> Self {
        let (mut first, listener) = Host::new(1, timings).await;
        first.run(Manager::init(first.config(), first.join_request()), listener).await;
        let mut hosts = vec![first];
        for number in 2..=size {
            let (mut host, listener) = Host::new(number, timings).await;
            let joined = join(&hosts[0], host.join_request()).await;
            host.run(Manager::join(host.config(), joined.raft_id), listener).await;
            host.manager().joined(PATIENCE).await.unwrap();
            hosts.push(host);
        }
        Self { hosts }
    }

    /// Waits until one running host leads; its place in `hosts`.
    pub async fn leader(&self) -> usize {
        eventually("a manager leads", || async {
            self.hosts.iter().position(|host| host.is_running() && host.manager().is_leader())
        })
        .await
    }

    /// A running host that does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        let is_follower =
            |(place, host): (usize, &Host)| (place != leader && host.is_running()).then_some(place);
        self.hosts.iter().enumerate().find_map(is_follower).expect("somebody follows")
    }

    /// Waits until every running host has applied what the leader has.
    pub async fn settled(&self) {
        let leader = self.leader().await;
        eventually("every manager has caught up", || async {
            let index = self.hosts[leader].manager().applied_index();
            let running = self.hosts.iter().filter(|host| host.is_running());
            running
                .map(|host| host.manager().applied_index())
                .all(|applied| applied >= index)
                .then_some(())
        })
        .await;
    }
}

pub async fn join(through: &Host, request: JoinRequest) -> JoinResponse {
    MembershipClient::new(through.channel()).join(request).await.unwrap().into_inner()
}

pub fn description(hostname: &str) -> NodeDescription {
    NodeDescription { hostname: hostname.into(), ..NodeDescription::default() }
}

pub fn spec(name: &str, replicas: u64) -> ServiceSpec {
    let container = ContainerSpec { image: "rootfs:/".into(), ..ContainerSpec::default() };
    let task = TaskSpec { container: Some(container), ..TaskSpec::default() };
    ServiceSpec {
        name: name.into(),
        task: Some(task),
        replicas,
        endpoint: Some(EndpointSpec::default()),
        ..ServiceSpec::default()
    }
}

/// Asks again until there is an answer.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    while Instant::now() < deadline {
        if let Some(answer) = ask().await {
            return answer;
        }
        pause.tick().await;
    }
    panic!("not within {PATIENCE:?}: {what}");
}

/// Whether a folder holds a file of that name.
pub fn has_file(folder: &Path, name: &str) -> bool {
    folder.join(name).exists()
}
