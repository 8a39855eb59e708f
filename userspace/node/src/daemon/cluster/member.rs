//! What runs because this node is a member, and how it is started.
//!
//! In the order data plane, manager, port, agent. Each function leaves what it started in
//! `Running`, so that whoever gives up stops it there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_agent::Agent;
use shoal_api::{JoinRequest, NodeSpec};
use shoal_dataplane::{Dataplane, Options, XdpMode};
use shoal_manager::Manager;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Cluster, JOIN, role};
use crate::config::Xdp;
use crate::daemon::gate::Behind;
use crate::daemon::membership::{self, AskError};
use crate::daemon::state::{Phase, Record, Role};
use crate::daemon::{host, sockets};

/// Between two tries to be let in while the command line waits.
const RETRY: Duration = Duration::from_millis(250);
/// Between two tries of a daemon that goes on joining in the background.
const RETRY_SLOW: Duration = Duration::from_secs(2);

/// What a member needs from the machine.
pub(super) struct Parts {
    /// A manager's port.
    listener: Option<TcpListener>,
    dataplane: Dataplane,
}

impl Cluster {
    /// Takes the port and loads the data plane.
    pub(super) async fn parts(&self, record: &Record) -> anyhow::Result<Parts> {
        let listener = match record.role {
            Role::Manager => Some(sockets::listen(self.0.config.listen_addr).await?),
            Role::Worker => None,
        };
        let dataplane = Dataplane::load(self.options(record)).await?;
        Ok(Parts { listener, dataplane })
    }

    /// The same for a node that was in no cluster: a data plane that loaded in part is taken away.
    pub(super) async fn fresh_parts(&self, record: &Record) -> anyhow::Result<Parts> {
        let parts = self.parts(record).await;
        if parts.is_err() {
            self.unload(record).await;
        }
        parts
    }

    pub(super) fn options(&self, record: &Record) -> Options {
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

    pub(super) fn join_request(&self, record: &Record) -> JoinRequest {
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
            data_path_port: self.0.config.data_path_port.into(),
            ..JoinRequest::default()
        }
    }

    /// Asks to be let in until a manager answers, or for as long as `limit` says.
    pub(super) async fn ask(
        &self,
        record: Record,
        limit: Option<Duration>,
    ) -> anyhow::Result<Record> {
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
    pub(super) async fn found(&self, record: Record, parts: Parts) -> anyhow::Result<Record> {
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
    pub(super) async fn enter(
        &self,
        record: &Record,
        parts: Parts,
    ) -> anyhow::Result<Option<Arc<Manager>>> {
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
    pub(super) async fn let_in(
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

    pub(super) fn manager_config(&self, record: &Record) -> shoal_manager::Config {
        let advertise = record.advertise_addr.clone();
        shoal_manager::Config::new(self.raft_dir(), record.node_id.clone(), advertise)
    }

    pub(super) fn raft_dir(&self) -> PathBuf {
        self.0.state.path().join("raft")
    }

    /// Serves a manager and watches it.
    pub(super) async fn open(
        &self,
        manager: Manager,
        listener: Option<TcpListener>,
    ) -> Arc<Manager> {
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

    pub(super) fn open_gate(&self, manager: Option<&Manager>) {
        self.0.gate.set(match manager {
            Some(manager) => Behind::Manager(manager.local_services()),
            None => Behind::Worker,
        });
    }

    pub(super) async fn start_agent(
        &self,
        record: &Record,
        dataplane: Dataplane,
    ) -> anyhow::Result<()> {
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
}
