//! This node's membership, from none to active, and what runs because of it.
//!
//! A member has a data plane, an agent and, where it is a manager, a manager with its port. They
//! start in the order data plane, manager, port, agent, and only after all that can be wrong with
//! the machine was tried; a failed `init` or `join` takes back what it made. Each way in, out and
//! between roles has a file of its own; whoever changes the membership holds `changing`.

mod addresses;
mod backups;
mod founding;
mod joining;
mod keeper;
mod leaving;
mod member;
mod roles;
mod unlocking;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use shoal_agent::{Agent, Kernel};
use shoal_api::NodeRole;
use shoal_manager::{Manager, Vault};
use shoal_transport::Credentials;
use tokio::sync::{MutexGuard, mpsc};
use tokio::task::JoinHandle;
use tracing::{info, warn};

pub use addresses::{Wishes, availability};

use super::certificates::Certificates;
use super::gate::{Behind, Gate};
use super::host;
use super::state::{Phase, Record, Role, StateDir, Token};
use crate::config::Config;
use crate::sentence::sentence;

/// How long a command waits for another change to end: longer than the disk needs for a certificate.
const PATIENCE: Duration = Duration::from_secs(2);

/// This node's membership; clones are the same one.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    config: Config,
    state: StateDir,
    certificates: Certificates,
    /// Tells this start of the daemon from others on copies of the same state (swarm.md N8).
    instance: String,
    gate: Gate,
    /// Held by whoever changes the membership.
    changing: tokio::sync::Mutex<()>,
    /// What `shoal info` sees. Never held over an await.
    seen: Mutex<Seen>,
    running: tokio::sync::Mutex<Running>,
    /// The keys of a restored state that no manager runs on yet.
    restored: tokio::sync::Mutex<Option<Vault>>,
    /// Why the daemon cannot go on.
    fatal: mpsc::Sender<String>,
}

/// A membership as others see it.
#[derive(Clone, Default)]
pub struct Seen {
    /// `None` outside of any cluster.
    pub record: Option<Record>,
    /// The data plane's figures.
    pub kernel: Option<Kernel>,
    /// What this node shows to others.
    pub credentials: Option<Credentials>,
    /// A manager that waits for its unlock key.
    pub locked: bool,
    /// Why a member cannot go on as it should.
    pub trouble: Option<String>,
}

/// What runs; all of it ends with the daemon.
#[derive(Default)]
struct Running {
    manager: Option<Serving>,
    agent: Option<Agent>,
    /// Keep the certificate and the role, or go on joining.
    watchers: Vec<JoinHandle<()>>,
}

/// A manager and what stands around it.
struct Serving {
    manager: Arc<Manager>,
    vault: Vault,
    /// Answers managers and agents.
    port: JoinHandle<()>,
    /// Tells when it cannot go on; opens the gate when it was let in.
    watchers: Vec<JoinHandle<()>>,
}

/// The role in the wire's words.
pub fn role(role: Role) -> NodeRole {
    match role {
        Role::Worker => NodeRole::Worker,
        Role::Manager => NodeRole::Manager,
    }
}

/// The wire's role in ours.
fn own_role(role: NodeRole) -> Role {
    match role {
        NodeRole::Worker => Role::Worker,
        NodeRole::Manager => Role::Manager,
    }
}

impl Cluster {
    /// A node that is in no cluster yet, and where it says why it cannot go on.
    pub fn new(config: Config, state: StateDir) -> (Self, mpsc::Receiver<String>) {
        let (fatal, fatal_reasons) = mpsc::channel(1);
        let inner = Inner {
            config,
            certificates: Certificates::new(state.path()),
            state,
            instance: shoal_api::id::from_bits(rand::random()),
            gate: Gate::default(),
            changing: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            running: tokio::sync::Mutex::default(),
            restored: tokio::sync::Mutex::default(),
            fatal,
        };
        (Self(Arc::new(inner)), fatal_reasons)
    }

    /// `Control` on the local socket.
    pub fn gate(&self) -> Gate {
        self.0.gate.clone()
    }

    /// The name that this node has among the others unless they call it otherwise.
    pub fn name(&self) -> String {
        host::description(&self.0.config).hostname
    }

    /// The membership as it is now.
    pub fn look(&self) -> Seen {
        self.seen().clone()
    }

    /// `host:port` of the managers that this node knows.
    pub async fn managers(&self) -> Vec<String> {
        let running = self.0.running.lock().await;
        let mut known = running.agent.as_ref().map(Agent::managers).unwrap_or_default();
        if known.is_empty() {
            known = self.seen().record.as_ref().map(Record::known).unwrap_or_default();
        }
        known
    }

    /// Goes on with what the state directory says.
    ///
    /// # Errors
    /// The state is damaged, or the machine lacks what a member needs.
    pub async fn resume(&self) -> anyhow::Result<()> {
        let Some(record) = self.0.state.load()? else { return Ok(()) };
        info!(node.id = record.node_id, phase = ?record.phase, role = ?record.role, "goes on");
        match record.phase {
            Phase::Founding | Phase::Leaving => {
                warn!("the daemon ended while it founded or left a cluster: nothing stays");
                self.remember(&record);
                self.take_back().await;
                Ok(())
            }
            Phase::Restored => self.resume_restored(&record).await,
            Phase::Joining if record.role == Role::Worker => self.go_on_joining(record, None).await,
            Phase::Joining | Phase::Active if record.role == Role::Manager => {
                self.resume_manager(record).await
            }
            Phase::Joining | Phase::Active => {
                // A manager that was demoted when the daemon ended.
                super::state::remove(&self.raft_dir())?;
                self.go_on(record, None).await
            }
        }
    }

    /// Ends what runs; tasks and forwarding stay.
    pub async fn stop(&self) {
        self.0.gate.set(Behind::Pending);
        // They first: one may be about to start something, or another of them.
        loop {
            let watchers = std::mem::take(&mut self.0.running.lock().await.watchers);
            if watchers.is_empty() {
                break;
            }
            for watcher in watchers {
                watcher.abort();
                let _ = watcher.await;
            }
        }
        let Running { manager, agent, watchers: _ } =
            std::mem::take(&mut *self.0.running.lock().await);
        self.seen().kernel = None;
        if let Some(agent) = agent {
            agent.shutdown().await;
        }
        if let Some(manager) = manager {
            manager.stop().await;
        }
    }

    /// Waits a moment for another change, as a renewed certificate is one, and refuses beside one
    /// that takes longer.
    async fn change(&self) -> anyhow::Result<MutexGuard<'_, ()>> {
        let changing = tokio::time::timeout(PATIENCE, self.0.changing.lock()).await;
        changing.ok().context("another change of this node's membership is under way")
    }

    /// Undoes an init or join that failed: this node is in no cluster again.
    async fn take_back(&self) {
        self.stop().await;
        let record = self.seen().record.clone();
        if let Some(record) = record
            && let Err(error) = self.forget(record).await
        {
            warn!(error = sentence(&error), "something stays of a membership that is over");
        }
    }

    /// Ends a membership of which nothing runs any more: its tasks, its data plane, its files.
    async fn forget(&self, record: Record) -> anyhow::Result<()> {
        let record = Record { phase: Phase::Leaving, token: Token::default(), ..record };
        // A crash from here on is made good at the next start.
        self.0.state.save(&record)?;
        let cgroups = host::cgroup_root(&self.0.config);
        shoal_agent::remove_tasks(self.0.state.path(), cgroups).await?;
        self.unload(&record).await;
        *self.0.restored.lock().await = None;
        *self.seen() = Seen::default();
        self.0.state.clear()?;
        self.0.gate.set(Behind::Nothing);
        Ok(())
    }

    async fn unload(&self, record: &Record) {
        if let Err(error) = shoal_dataplane::unload(&self.options(record)).await {
            warn!(%error, "the data plane of a membership that is over stays");
        }
    }

    /// Writes the membership down, and shows it.
    fn save(&self, record: &Record) -> anyhow::Result<()> {
        self.0.state.save(record)?;
        self.remember(record);
        Ok(())
    }

    fn remember(&self, record: &Record) {
        self.seen().record = Some(record.clone());
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says why this member cannot go on as it should; `None` when it can again.
    fn trouble(&self, trouble: Option<String>) {
        let mut seen = self.seen();
        if seen.trouble != trouble {
            match &trouble {
                Some(reason) => warn!(reason, "this node is in trouble"),
                None => info!("this node is well again"),
            }
            seen.trouble = trouble;
        }
    }

    fn raft_dir(&self) -> PathBuf {
        self.0.state.path().join("raft")
    }

    /// Ends the daemon with a reason; the first one is told.
    async fn end(&self, reason: &anyhow::Error) {
        let _ = self.0.fatal.send(sentence(reason)).await;
    }
}

impl Serving {
    async fn stop(self) {
        for watcher in self.watchers {
            // It would take the end of the manager for a failure.
            watcher.abort();
            let _ = watcher.await;
        }
        // The port goes after it: the others answer there while leadership is handed over.
        self.manager.shutdown().await;
        self.port.abort();
        let _ = self.port.await;
    }
}
