//! This node's membership, from none to active, and what runs because of it.
//!
//! A member has a data plane, an agent and, where it is a manager, a manager with its port. They
//! start in the order data plane, manager, port, agent, and only after all that can be wrong with
//! the machine was tried; a failed `init` or `join` takes back what it made.

mod member;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use shoal_agent::{Agent, Kernel};
use shoal_api::NodeRole;
use shoal_manager::Manager;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::gate::{Behind, Gate};
use super::host;
use super::state::{Phase, Record, Role, StateDir};
use crate::config::{Advertise, Config};
use crate::sentence::sentence;

/// How long `shoal join` tries to reach a manager that may be starting too.
const REACH: Duration = Duration::from_secs(10);
/// How long `shoal join` waits to be let in; Docker's (swarm.md CL3).
const JOIN: Duration = Duration::from_secs(20);
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
        let _ = self.0.fatal.send(sentence(reason)).await;
    }
}
