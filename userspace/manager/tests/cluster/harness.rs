//! Hosts, clusters, and waiting for a fact with a deadline.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shoal_api::ca_client::CaClient;
use shoal_api::control_client::ControlClient;
use shoal_api::dispatcher_client::DispatcherClient;
use shoal_api::time::Timestamp;
use shoal_api::{
    Cluster as ClusterObject, ContainerSpec, CreateServiceRequest, EndpointSpec, GetClusterRequest,
    IssuedCertificate, JoinRequest, JoinResponse, JoinTokens, ListRequest, Node, NodeDescription,
    NodeSpec, Service, ServiceSpec, TaskSpec,
};
use shoal_identity::{JoinToken, Key, csr};
use shoal_manager::{Config, Founding, Manager, NewCluster, Timings, Vault, VaultError};
use shoal_transport::{Credentials, Dial, accept};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Server};

use crate::wire::Wire;

/// Longer than anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node: its key, and the certificate that it has by now.
pub struct Member {
    pub key: Key,
    pub node_id: String,
    pub hostname: String,
    pub chain_pem: String,
    credentials: Option<Credentials>,
}

impl Member {
    pub fn new(number: usize) -> Self {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        let key = Key::from_seed(&seed);
        let node_id = key.node_id();
        Self {
            key,
            node_id,
            hostname: format!("n{number}"),
            chain_pem: String::new(),
            credentials: None,
        }
    }

    pub fn credentials(&self) -> Credentials {
        self.credentials.clone().expect("the node has a certificate")
    }

    /// Takes a certificate, the first or a new one.
    pub fn take(&mut self, issued: &IssuedCertificate, key: &Key) {
        let (chain, roots) = (&issued.chain_pem, &issued.roots_pem);
        self.chain_pem.clone_from(chain);
        match &self.credentials {
            Some(credentials) => credentials.replace(chain, key, roots).unwrap(),
            None => self.credentials = Some(Credentials::new(chain, key, roots).unwrap()),
        }
    }

    pub fn request(&self, addr: &str, token: &str) -> JoinRequest {
        JoinRequest {
            spec: Some(NodeSpec::default()),
            description: Some(description(&self.hostname)),
            addr: addr.into(),
            data_path_addr: "127.0.0.1".into(),
            token: token.into(),
            csr: csr::request(&self.key),
            ..JoinRequest::default()
        }
    }

    /// Joins as its token says, through a manager that is there.
    pub async fn join(
        &mut self,
        through: &Host,
        addr: &str,
        token: &str,
    ) -> Result<JoinResponse, Status> {
        let pinned = JoinToken::parse(token).unwrap();
        let dial = Dial::default();
        let connected = shoal_transport::connect_with_token(&through.inner, &pinned, &dial).await;
        let request = self.request(addr, token);
        let joined = CaClient::new(connected.unwrap()).join(request).await?.into_inner();
        let key = self.key.clone();
        self.take(joined.certificate.as_ref().unwrap(), &key);
        Ok(joined)
    }

    /// A connection in this node's name.
    pub fn channel(&self, to: &Host) -> Channel {
        shoal_transport::lazy(&self.credentials(), &to.inner, &Dial::default()).unwrap()
    }

    pub fn dispatcher(&self, to: &Host) -> DispatcherClient<Channel> {
        DispatcherClient::new(self.channel(to))
    }

    pub fn control(&self, to: &Host) -> ControlClient<Channel> {
        ControlClient::new(self.channel(to))
    }
}

/// The wall clock, as certificates are dated by it.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since_epoch.as_nanos()).unwrap())
}

/// One host: its disk stays, its process comes and goes.
pub struct Host {
    pub member: Member,
    pub node_id: String,
    pub addr: String,
    pub folder: TempDir,
    pub timings: Timings,
    pub wire: Wire,
    /// Names by which it finds the others.
    pub join_addrs: Vec<String>,
    /// Where it listens, behind the wire.
    pub inner: String,
    process: Option<Process>,
}

struct Process {
    runtime: Runtime,
    manager: Manager,
}

impl Host {
    /// A host with an address and nothing running.
    pub async fn new(number: usize, timings: &Timings) -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = listener.local_addr().unwrap().to_string();
        let wire = Wire::new(inner.clone()).await;
        let member = Member::new(number);
        let host = Self {
            node_id: member.node_id.clone(),
            member,
            addr: wire.addr.clone(),
            folder: tempfile::tempdir().unwrap(),
            timings: timings.clone(),
            wire,
            join_addrs: Vec::new(),
            inner,
            process: None,
        };
        (host, listener)
    }

    pub fn config(&self) -> Config {
        self.config_with(self.vault().unwrap())
    }

    pub fn config_with(&self, vault: Vault) -> Config {
        let credentials = self.member.credentials();
        Config {
            timings: self.timings.clone(),
            join_addrs: self.join_addrs.clone(),
            ..Config::new(self.state_dir(), &self.node_id, &self.addr, vault, credentials)
        }
    }

    /// The vault on the disk; a new one for a manager that never ran.
    pub fn vault(&self) -> Result<Vault, VaultError> {
        match shoal_manager::has_state(&self.state_dir()) {
            true => Vault::open(&self.state_dir(), None),
            false => Vault::open_or_create(&self.state_dir()),
        }
    }

    /// Why it cannot be started again.
    #[allow(dead_code, reason = "the durability tests use it")]
    pub async fn refusal(&self) -> String {
        match self.vault() {
            Ok(vault) => {
                let refused = Manager::restart(self.config_with(vault)).await;
                refused.err().expect("it does not start").to_string()
            }
            Err(refused) => refused.to_string(),
        }
    }

    pub fn state_dir(&self) -> std::path::PathBuf {
        self.folder.path().join("manager")
    }

    #[allow(dead_code, reason = "the durability tests use it")]
    pub fn join_request(&self) -> JoinRequest {
        let node_id = self.node_id.clone();
        JoinRequest { node_id, ..self.member.request(&self.addr, "") }
    }

    /// Draws a cluster that this host founds, and takes its certificate.
    pub fn founding(&mut self, new: NewCluster) -> Founding {
        let node = self.member.request(&self.addr, "");
        let (founding, issued) =
            Founding::new(NewCluster { node, ..new }, &self.member.key, now()).unwrap();
        // A member of one cluster may draw another, and stays what it is.
        if self.member.credentials.is_none() {
            let key = self.member.key.clone();
            self.member.take(&issued, &key);
        }
        founding
    }

    /// Runs a manager in a process of its own and serves it.
    pub async fn run<F>(&mut self, start: F, listener: TcpListener)
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
        let (routes, credentials) = (manager.services(), self.member.credentials());
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = accept(listener, &credentials);
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
        let vault = self.vault().unwrap();
        self.restart_with(vault).await;
    }

    /// The same, with a vault that was unlocked.
    pub async fn restart_with(&mut self, vault: Vault) {
        let inner = self.inner.clone();
        let bind = || async { TcpListener::bind(&inner).await.ok() };
        let listener = eventually("the port is free", bind).await;
        self.wire.open().await;
        self.run(Manager::restart(self.config_with(vault)), listener).await;
    }

    /// The tests stand at the host itself, so that a cut wire is the managers' matter.
    pub fn channel(&self) -> Channel {
        self.member.channel(self)
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

    /// The cluster's object, and the tokens in it.
    pub async fn cluster(&self) -> ClusterObject {
        let response = self.control().get_cluster(GetClusterRequest {}).await.unwrap();
        response.into_inner().cluster.expect("there is a cluster")
    }

    pub async fn tokens(&self) -> JoinTokens {
        self.cluster().await.root_ca.and_then(|root_ca| root_ca.tokens).expect("there are tokens")
    }

    pub async fn node(&self, node_id: &str) -> Option<Node> {
        let nodes = self.control().list_nodes(ListRequest {}).await.ok()?.into_inner().nodes;
        nodes.into_iter().find(|node| node.id == node_id)
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
        let founding = first.founding(NewCluster::default());
        first.run(Manager::init(first.config(), founding), listener).await;
        let mut cluster = Self { hosts: vec![first] };
        for _ in 1..size {
            cluster.add(timings).await;
        }
        cluster
    }

    /// One more manager, by its token.
    pub async fn add(&mut self, timings: &Timings) {
        self.add_as(self.hosts.len() + 1, timings).await;
    }

    /// One more manager, of that number.
    pub async fn add_as(&mut self, number: usize, timings: &Timings) {
        let (mut host, listener) = Host::new(number, timings).await;
        let token = self.hosts[0].tokens().await.manager;
        let addr = host.addr.clone();
        let joined = host.member.join(&self.hosts[0], &addr, &token).await.unwrap();
        host.run(Manager::join(host.config(), joined.raft_id), listener).await;
        host.manager().joined(PATIENCE).await.unwrap();
        self.hosts.push(host);
    }

    /// A worker's node, without an agent.
    pub async fn worker(&self, number: usize) -> Member {
        let mut worker = Member::new(number);
        let token = self.hosts[0].tokens().await.worker;
        worker.join(&self.hosts[0], "127.0.0.1:1", &token).await.unwrap();
        worker
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
