//! What runs because this node is a member, and how it is started.
//!
//! In the order data plane, manager, port, agent. Each function leaves what it started in
//! `Running`, so that whoever gives up stops it there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_agent::Agent;
use shoal_api::{JoinRequest, NodeSpec};
use shoal_dataplane::{Dataplane, Options, XdpMode};
use shoal_manager::{Manager, Vault};
use shoal_transport::Credentials;
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::addresses::on_the_wire;
use super::{Cluster, Serving, role};
use crate::config::Xdp;
use crate::daemon::gate::Behind;
use crate::daemon::state::{Record, Role};
use crate::daemon::{host, sockets};

/// How long one look lasts whether a manager was let in, before it is logged and looked again.
pub(super) const LET_IN: Duration = Duration::from_secs(20);
/// Between two such looks when one ends at once.
const PAUSE: Duration = Duration::from_secs(2);

impl Cluster {
    /// Loads the data plane of a node that was in no cluster: one that loaded in part is taken away.
    pub(super) async fn fresh_dataplane(&self, record: &Record) -> anyhow::Result<Dataplane> {
        let dataplane = Dataplane::load(self.options(record)).await;
        if dataplane.is_err() {
            self.unload(record).await;
        }
        Ok(dataplane?)
    }

    pub(super) fn options(&self, record: &Record) -> Options {
        let config = &self.0.config;
        Options {
            uplink: config.uplink.clone(),
            vxlan_port: record.data_path_port,
            xdp: match config.xdp {
                Xdp::Auto => XdpMode::Auto,
                Xdp::Native => XdpMode::Native,
                Xdp::Generic => XdpMode::Generic,
                Xdp::Off => XdpMode::Off,
            },
            ..Options::new(&config.pin_dir, record.data_path_addr)
        }
    }

    /// This node as it presents itself to a cluster.
    pub(super) fn join_request(&self, record: &Record) -> JoinRequest {
        let description = host::description(&self.0.config);
        let spec = NodeSpec {
            name: description.hostname.clone(),
            role: role(record.role).into(),
            availability: on_the_wire(record.availability).into(),
            ..NodeSpec::default()
        };
        JoinRequest {
            node_id: record.node_id.clone(),
            spec: Some(spec),
            description: Some(description),
            addr: record.advertise_addr.clone(),
            data_path_addr: record.data_path_addr.to_string(),
            data_path_port: record.data_path_port.into(),
            ..JoinRequest::default()
        }
    }

    /// Reads what this node shows to others, and shows it.
    pub(super) fn credentials(&self, vault: Option<&Vault>) -> anyhow::Result<Credentials> {
        let held = self.0.certificates.load(vault)?;
        let credentials = Credentials::new(&held.chain_pem, &held.key, &held.roots_pem)
            .context("the certificates in the state directory cannot be used")?;
        self.seen().credentials = Some(credentials.clone());
        Ok(credentials)
    }

    pub(super) fn manager_config(
        &self,
        record: &Record,
        vault: &Vault,
        credentials: &Credentials,
    ) -> shoal_manager::Config {
        shoal_manager::Config {
            state_dir: self.raft_dir(),
            node_id: record.node_id.clone(),
            advertise_addr: record.advertise_addr.clone(),
            timings: shoal_manager::Timings::default(),
            vault: vault.clone(),
            credentials: credentials.clone(),
            join_addrs: record.known(),
        }
    }

    /// Goes on as a member: data plane, agent and, with a vault, the manager.
    pub(super) async fn go_on(&self, record: Record, vault: Option<Vault>) -> anyhow::Result<()> {
        self.remember(&record);
        let record = self.readdressed(record)?;
        let credentials = self.credentials(vault.as_ref())?;
        let listener = match record.role {
            Role::Manager => Some(sockets::listen(record.listen_addr).await?),
            Role::Worker => None,
        };
        let dataplane = Dataplane::load(self.options(&record)).await?;
        if let (Some(vault), Some(listener)) = (vault, listener) {
            // It has voted under this Raft id; with an empty log it could vote again and undo what
            // was committed.
            anyhow::ensure!(
                shoal_manager::has_state(&self.raft_dir()),
                "{} is missing, without which this node cannot be the manager it was: bring it \
                 back from a backup, or remove {} and join again as a new node",
                self.raft_dir().display(),
                self.0.state.path().display()
            );
            // Sealed anew at each start: the vault may have a newer key.
            self.0.certificates.seal(&vault)?;
            let config = self.manager_config(&record, &vault, &credentials);
            let manager = Arc::new(Manager::restart(config).await?);
            self.serve(&manager, vault, listener, &credentials).await;
            self.0.gate.set(Behind::Manager(manager.local_services()));
        }
        self.start_agent(&record, dataplane, &credentials).await?;
        if record.role == Role::Worker {
            self.0.gate.set(Behind::Worker);
        }
        self.keep().await;
        Ok(())
    }

    /// Serves a manager and watches it.
    pub(super) async fn serve(
        &self,
        manager: &Arc<Manager>,
        vault: Vault,
        listener: TcpListener,
        credentials: &Credentials,
    ) {
        let watcher = {
            let (manager, cluster) = (Arc::clone(manager), self.clone());
            tokio::spawn(async move {
                let reason = manager.stopped().await;
                drop(manager);
                cluster.end(&anyhow::anyhow!(reason)).await;
            })
        };
        self.0.running.lock().await.manager = Some(Serving {
            manager: Arc::clone(manager),
            vault,
            port: sockets::serve(listener, credentials, manager.services()),
            watchers: vec![watcher],
        });
    }

    /// Opens the gate when the managers have let this one in, and does what else is to be done then.
    pub(super) async fn when_let_in(
        &self,
        manager: &Arc<Manager>,
        then: impl Future<Output = ()> + Send + 'static,
    ) {
        let (manager, cluster) = (Arc::clone(manager), self.clone());
        let waiting = tokio::spawn(async move {
            while let Err(error) = manager.joined(LET_IN).await {
                warn!(%error, "is not let in yet");
                // An error that comes at once must not be asked for in a loop.
                tokio::time::sleep(PAUSE).await;
            }
            cluster.0.gate.set(Behind::Manager(manager.local_services()));
            info!("this manager takes part");
            then.await;
        });
        if let Some(serving) = &mut self.0.running.lock().await.manager {
            serving.watchers.push(waiting);
        }
    }

    pub(super) async fn start_agent(
        &self,
        record: &Record,
        dataplane: Dataplane,
        credentials: &Credentials,
    ) -> anyhow::Result<()> {
        // Its own manager first: no other host need be up for the tasks of this one.
        let own = (record.role == Role::Manager).then(|| record.advertise_addr.clone());
        let agent = shoal_agent::Config {
            node_id: record.node_id.clone(),
            state_dir: self.0.state.path().to_owned(),
            managers: own.into_iter().chain(record.known()).collect(),
            description: host::description(&self.0.config),
            data_path_addr: record.data_path_addr.to_string(),
            cgroup_root: host::cgroup_root(&self.0.config),
            shim_exe: shoal_agent::Config::SELF.into(),
            credentials: credentials.clone(),
            addr: record.advertise_addr.clone(),
            instance: self.0.instance.clone(),
        };
        let agent = Agent::start(agent, dataplane).context("the agent does not start")?;
        self.seen().kernel = Some(agent.kernel());
        self.0.running.lock().await.agent = Some(agent);
        Ok(())
    }
}
