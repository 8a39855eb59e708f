//! This node's membership, from none to active, and what runs because of it.
//!
//! A member has a data plane, an agent and, where it is a manager, a manager with its port. They
//! start in the order data plane, manager, port, agent, and only after all that can be wrong with
//! the machine was tried; a failed `init` or `join` takes back what it made.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use shoal_agent::{Agent, Kernel};
use shoal_api::{JoinRequest, NodeRole, NodeSpec};
use shoal_dataplane::{Dataplane, Options, XdpMode};
use shoal_manager::Manager;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::gate::{Behind, Gate};
use super::membership::{self, AskError};
use super::state::{Phase, Record, Role, StateDir};
use super::{host, sockets};
use crate::config::{Advertise, Config, Xdp};

/// How long `shoal join` tries to reach a manager that may be starting too.
const REACH: Duration = Duration::from_secs(10);
/// How long `shoal join` waits to be let in; Docker's (swarm.md CL3).
const JOIN: Duration = Duration::from_secs(20);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(250);
/// Between two tries of a daemon that goes on joining in the background.
const RETRY_SLOW: Duration = Duration::from_secs(2);

/// This node's membership; clones are the same one.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    config: Config,
    state: StateDir,
    gate: Gate,
    /// Held by whoever changes the membership.
    changing: tokio::sync::Mutex<()>,
    /// What `shoal info` sees. Never held over an await.
    seen: Mutex<Seen>,
    running: tokio::sync::Mutex<Running>,
    /// Why the daemon cannot go on.
    fatal: mpsc::Sender<String>,
}

#[derive(Clone, Default)]
struct Seen {
    record: Option<Record>,
    kernel: Option<Kernel>,
}

/// What runs; all of it ends with the daemon.
#[derive(Default)]
struct Running {
    manager: Option<Arc<Manager>>,
    agent: Option<Agent>,
    /// Answers managers and agents.
    port: Option<JoinHandle<()>>,
    /// Watch the manager, or go on joining.
    watchers: Vec<JoinHandle<()>>,
}

/// What a member needs from the machine.
struct Parts {
    /// A manager's port.
    listener: Option<TcpListener>,
    dataplane: Dataplane,
}

/// The role in the wire's words.
pub fn role(role: Role) -> NodeRole {
    match role {
        Role::Worker => NodeRole::Worker,
        Role::Manager => NodeRole::Manager,
    }
}

impl Cluster {
    /// A node that is in no cluster yet, and where it says why it cannot go on.
    pub fn new(config: Config, state: StateDir) -> (Self, mpsc::Receiver<String>) {
        let (fatal, fatal_reasons) = mpsc::channel(1);
        let inner = Inner {
            config,
            state,
            gate: Gate::default(),
            changing: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            running: tokio::sync::Mutex::default(),
            fatal,
        };
        (Self(Arc::new(inner)), fatal_reasons)
    }

    /// `Control` on the local socket.
    pub fn gate(&self) -> Gate {
        self.0.gate.clone()
    }

    /// The membership as it is now, and the data plane's figures.
    pub fn look(&self) -> (Option<Record>, Option<Kernel>) {
        let Seen { record, kernel } = self.seen().clone();
        (record, kernel)
    }

    /// Goes on with what the state directory says.
    ///
    /// # Errors
    /// The state is damaged, or the machine lacks what a member needs.
    pub async fn resume(&self) -> anyhow::Result<()> {
        let Some(record) = self.0.state.load()? else { return Ok(()) };
        info!(node.id = record.node_id, phase = ?record.phase, role = ?record.role, "goes on");
        self.remember(&record);
        let parts = self.parts(&record).await?;
        match record.phase {
            Phase::Founding => self.found(record, parts).await.map(drop),
            Phase::Active => {
                let manager = self.enter(&record, parts).await?;
                self.open_gate(manager.as_deref());
                Ok(())
            }
            Phase::Joining => {
                self.0.gate.set(Behind::Pending);
                let cluster = self.clone();
                let joining = tokio::spawn(async move {
                    let let_in = async {
                        let record = cluster.ask(record, None).await?;
                        cluster.let_in(record, parts).await
                    };
                    if let Err(error) = let_in.await {
                        cluster.end(&error).await;
                    }
                });
                self.0.running.lock().await.watchers.push(joining);
                Ok(())
            }
        }
    }

    /// Founds a cluster.
    ///
    /// # Errors
    /// This node is in one, or the machine lacks what a member needs; nothing is left then.
    pub async fn init(&self, advertise: Option<Advertise>) -> anyhow::Result<Record> {
        let _changing = self.change()?;
        let record = self.record(Phase::Founding, Role::Manager, advertise, Vec::new())?;
        let parts = self.fresh_parts(&record).await?;
        self.0.state.save(&record)?;
        match self.found(record, parts).await {
            Ok(record) => Ok(record),
            Err(error) => {
                self.take_back().await;
                Err(error)
            }
        }
    }

    /// Joins the cluster of these managers.
    ///
    /// # Errors
    /// This node is in one, the machine lacks what a member needs, no manager answers, or one
    /// refuses; nothing is left then. When being let in takes too long, it goes on in the
    /// background.
    pub async fn join(
        &self,
        addrs: Vec<String>,
        wanted: NodeRole,
        advertise: Option<Advertise>,
    ) -> anyhow::Result<Record> {
        let _changing = self.change()?;
        let wanted = match wanted {
            NodeRole::Worker => Role::Worker,
            NodeRole::Manager => Role::Manager,
        };
        let record = self.record(Phase::Joining, wanted, advertise, addrs)?;
        let parts = self.fresh_parts(&record).await?;
        // Before asking: a manager that says yes and a node that forgets it would be two nodes.
        self.0.state.save(&record)?;
        self.remember(&record);
        self.0.gate.set(Behind::Pending);
        let record = match self.ask(record, Some(REACH)).await {
            Ok(record) => record,
            Err(error) => {
                // The data plane goes with what it attached to.
                drop(parts);
                self.take_back().await;
                return Err(error);
            }
        };
        match tokio::time::timeout(JOIN, self.let_in(record, parts).await?).await {
            Ok(Ok(record)) => Ok(record),
            _ => anyhow::bail!(
                "Timeout was reached before node joined. The attempt to join the swarm will \
                 continue in the background. Use the \"shoal info\" command to see the current \
                 swarm status of your node."
            ),
        }
    }

    /// Ends what runs; tasks and forwarding stay.
    pub async fn stop(&self) {
        self.0.gate.set(Behind::Pending);
        let running = std::mem::take(&mut *self.0.running.lock().await);
        self.seen().kernel = None;
        if let Some(agent) = running.agent {
            agent.shutdown().await;
        }
        for watcher in running.watchers {
            // It would take the end of the manager for a failure.
            watcher.abort();
            let _ = watcher.await;
        }
        if let Some(manager) = running.manager {
            // The port goes after it: the others answer there while leadership is handed over.
            manager.shutdown().await;
        }
        if let Some(port) = running.port {
            port.abort();
        }
    }

    /// Refuses a change while there is a membership or another change is under way.
    fn change(&self) -> anyhow::Result<tokio::sync::MutexGuard<'_, ()>> {
        let changing = self.0.changing.try_lock();
        let changing = changing.context("another init or join is under way on this node")?;
        anyhow::ensure!(
            self.seen().record.is_none(),
            "This node is already part of a swarm. A node leaves it when its daemon is stopped and \
             its state directory {} is removed.",
            self.0.state.path().display()
        );
        Ok(changing)
    }

    /// A new membership with the addresses that this machine has.
    fn record(
        &self,
        phase: Phase,
        role: Role,
        advertise: Option<Advertise>,
        managers: Vec<String>,
    ) -> anyhow::Result<Record> {
        let config = &self.0.config;
        let addresses = host::addresses()?;
        let wanted = advertise.as_ref().or(config.advertise_addr.as_ref());
        let advertised = host::advertise(wanted, config.listen_addr, &addresses)?;
        let data_path = host::data_path(config.data_path_addr.as_ref(), advertised, &addresses)?;
        Ok(Record {
            phase,
            node_id: shoal_api::id::from_bits(rand::random()),
            role,
            advertise_addr: advertised.to_string(),
            data_path_addr: data_path,
            cluster_id: String::new(),
            raft_id: 0,
            managers,
        })
    }

    /// Takes the port and loads the data plane.
    async fn parts(&self, record: &Record) -> anyhow::Result<Parts> {
        let listener = match record.role {
            Role::Manager => Some(sockets::listen(self.0.config.listen_addr).await?),
            Role::Worker => None,
        };
        let dataplane = Dataplane::load(self.options(record)).await?;
        Ok(Parts { listener, dataplane })
    }

    /// The same for a node that was in no cluster: a data plane that loaded in part is taken away.
    async fn fresh_parts(&self, record: &Record) -> anyhow::Result<Parts> {
        let parts = self.parts(record).await;
        if parts.is_err() {
            self.unload(record).await;
        }
        parts
    }

    fn options(&self, record: &Record) -> Options {
        let config = &self.0.config;
        Options {
            uplink: config.uplink.clone(),
            vxlan_port: config.data_path_port,
            xdp: match config.xdp {
                Xdp::Auto => XdpMode::Auto,
                Xdp::Native => XdpMode::Native,
                Xdp::Generic => XdpMode::Generic,
                Xdp::Off => XdpMode::Off,
            },
            ..Options::new(&config.pin_dir, record.data_path_addr)
        }
    }

    fn join_request(&self, record: &Record) -> JoinRequest {
        let description = host::description(&self.0.config);
        let spec = NodeSpec {
            name: description.hostname.clone(),
            role: role(record.role).into(),
            ..NodeSpec::default()
        };
        JoinRequest {
            node_id: record.node_id.clone(),
            spec: Some(spec),
            description: Some(description),
            addr: match record.role {
                Role::Manager => record.advertise_addr.clone(),
                Role::Worker => String::new(),
            },
            data_path_addr: record.data_path_addr.to_string(),
        }
    }

    /// Asks to be let in until a manager answers, or for as long as `limit` says.
    async fn ask(&self, record: Record, limit: Option<Duration>) -> anyhow::Result<Record> {
        let started = tokio::time::Instant::now();
        let retry = if limit.is_some() { RETRY } else { RETRY_SLOW };
        let request = self.join_request(&record);
        loop {
            match membership::ask(&record.managers, &request).await {
                Ok(answer) => {
                    let mut managers = answer.managers;
                    managers.extend(record.managers.iter().cloned());
                    managers.sort_unstable();
                    managers.dedup();
                    let (cluster_id, raft_id) = (answer.cluster_id, answer.raft_id);
                    let record = Record { cluster_id, raft_id, managers, ..record };
                    self.0.state.save(&record)?;
                    self.remember(&record);
                    return Ok(record);
                }
                Err(error @ AskError::Refused { .. }) => return Err(error.into()),
                Err(error) if limit.is_some_and(|limit| started.elapsed() >= limit) => {
                    return Err(error.into());
                }
                Err(error) => info!(%error, "asks again to be let in"),
            }
            tokio::time::sleep(retry).await;
        }
    }

    /// Starts a cluster's first manager, or goes on with one that was starting.
    async fn found(&self, record: Record, parts: Parts) -> anyhow::Result<Record> {
        self.remember(&record);
        self.0.gate.set(Behind::Pending);
        let config = self.manager_config(&record);
        let manager = if shoal_manager::has_state(&config.state_dir) {
            Manager::restart(config).await?
        } else {
            Manager::init(config, self.join_request(&record)).await?
        };
        let cluster_id = manager.cluster_id().unwrap_or_default();
        let record = Record { cluster_id, phase: Phase::Active, ..record };
        let manager = self.open(manager, parts.listener).await;
        self.start_agent(&record, parts.dataplane).await?;
        self.0.gate.set(Behind::Manager(manager.local_services()));
        self.0.state.save(&record)?;
        self.remember(&record);
        Ok(record)
    }

    /// Goes on as a member.
    async fn enter(&self, record: &Record, parts: Parts) -> anyhow::Result<Option<Arc<Manager>>> {
        let manager = match record.role {
            Role::Worker => None,
            Role::Manager => {
                let config = self.manager_config(record);
                let manager = if shoal_manager::has_state(&config.state_dir) {
                    Manager::restart(config).await?
                } else {
                    // It has voted under this Raft id; with an empty log it could vote again and
                    // undo what was committed.
                    anyhow::ensure!(
                        record.phase != Phase::Active,
                        "{} is missing, without which this node cannot be the manager it was: \
                         bring it back from a backup, or remove {} and join again as a new node",
                        config.state_dir.display(),
                        self.0.state.path().display()
                    );
                    Manager::join(config, record.raft_id).await?
                };
                Some(self.open(manager, parts.listener).await)
            }
        };
        self.start_agent(record, parts.dataplane).await?;
        Ok(manager)
    }

    /// Enters, and tells by the channel when the managers have let this node in.
    async fn let_in(
        &self,
        record: Record,
        parts: Parts,
    ) -> anyhow::Result<oneshot::Receiver<Record>> {
        let manager = self.enter(&record, parts).await?;
        let (tell, told) = oneshot::channel();
        let cluster = self.clone();
        let waiting = tokio::spawn(async move {
            if let Some(manager) = &manager {
                while let Err(error) = manager.joined(JOIN).await {
                    warn!(%error, "is not let in yet");
                    // An error that comes at once must not be asked for in a loop.
                    tokio::time::sleep(RETRY_SLOW).await;
                }
            }
            let record = Record { phase: Phase::Active, ..record };
            if let Err(error) = cluster.0.state.save(&record) {
                return cluster.end(&error.into()).await;
            }
            cluster.remember(&record);
            cluster.open_gate(manager.as_deref());
            info!(node.id = record.node_id, cluster.id = record.cluster_id, "joined");
            // Nobody waits where the command line gave up.
            let _ = tell.send(record);
        });
        self.0.running.lock().await.watchers.push(waiting);
        Ok(told)
    }

    fn manager_config(&self, record: &Record) -> shoal_manager::Config {
        let advertise = record.advertise_addr.clone();
        shoal_manager::Config::new(self.raft_dir(), record.node_id.clone(), advertise)
    }

    fn raft_dir(&self) -> PathBuf {
        self.0.state.path().join("raft")
    }

    /// Serves a manager and watches it.
    async fn open(&self, manager: Manager, listener: Option<TcpListener>) -> Arc<Manager> {
        let manager = Arc::new(manager);
        let watcher = {
            let (manager, cluster) = (manager.clone(), self.clone());
            tokio::spawn(async move {
                let reason = manager.stopped().await;
                drop(manager);
                cluster.end(&anyhow::anyhow!(reason)).await;
            })
        };
        let mut running = self.0.running.lock().await;
        running.port = listener.map(|listener| sockets::serve(listener, manager.services()));
        running.watchers.push(watcher);
        running.manager = Some(manager.clone());
        manager
    }

    fn open_gate(&self, manager: Option<&Manager>) {
        self.0.gate.set(match manager {
            Some(manager) => Behind::Manager(manager.local_services()),
            None => Behind::Worker,
        });
    }

    async fn start_agent(&self, record: &Record, dataplane: Dataplane) -> anyhow::Result<()> {
        // Its own manager first: no other host need be up for the tasks of this one.
        let own = (record.role == Role::Manager).then(|| record.advertise_addr.clone());
        let agent = shoal_agent::Config {
            node_id: record.node_id.clone(),
            state_dir: self.0.state.path().to_owned(),
            managers: own.into_iter().chain(record.managers.iter().cloned()).collect(),
            description: host::description(&self.0.config),
            data_path_addr: record.data_path_addr.to_string(),
            cgroup_root: host::cgroup_root(&self.0.config),
            shim_exe: shoal_agent::Config::SELF.into(),
        };
        let agent = Agent::start(agent, dataplane).context("the agent does not start")?;
        self.seen().kernel = Some(agent.kernel());
        self.0.running.lock().await.agent = Some(agent);
        Ok(())
    }

    /// Undoes an init or join that failed: this node is in no cluster again.
    async fn take_back(&self) {
        let record = self.seen().record.take();
        self.stop().await;
        self.0.gate.set(Behind::Nothing);
        if let Err(error) = self.0.state.forget() {
            warn!(%error, "the state of a failed start stays");
        }
        // What the manager and the agent keep of the cluster that did not come to be.
        let (raft, managers) = (self.raft_dir(), self.0.state.path().join("managers.json"));
        let removed = [std::fs::remove_dir_all(raft), std::fs::remove_file(managers)];
        for error in removed.into_iter().filter_map(Result::err) {
            if error.kind() != std::io::ErrorKind::NotFound {
                warn!(%error, "the state of a failed start stays");
            }
        }
        if let Some(record) = record {
            self.unload(&record).await;
        }
    }

    async fn unload(&self, record: &Record) {
        if let Err(error) = shoal_dataplane::unload(&self.options(record)).await {
            warn!(%error, "the data plane of a failed start stays");
        }
    }

    fn remember(&self, record: &Record) {
        self.seen().record = Some(record.clone());
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the daemon with a reason; the first one is told.
    async fn end(&self, reason: &anyhow::Error) {
        let _ = self.0.fatal.send(format!("{reason:#}")).await;
    }
}
