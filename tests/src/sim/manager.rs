//! One start of a manager on a host: Raft, the store, the leader's loop; gone when the power fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{InitializeError, RaftError};
use openraft::{AsyncRuntime, SnapshotPolicy};
use openraft_rt_sim::{SimInstant, SimRuntime};
use parking_lot::Mutex;
use shoal_control::Founding;

use super::desk::Desk;
use super::disk::Mount;
use super::host::Host;
use super::leader;
use super::log_store::LogStore;
use super::machine::{StateMachine, View};
use super::raft_net::Network;
use super::types::{Peer, Raft};
use super::world::World;

/// Entries between two snapshots: few, so that followers often need one.
const SNAPSHOT_AFTER: u64 = 40;
/// Entries kept behind a snapshot.
const KEPT: u64 = 20;

/// A manager that runs.
pub(super) struct Running {
    pub(super) host: Arc<Host>,
    pub(super) raft_id: u64,
    pub(super) raft: Raft,
    pub(super) view: Arc<View>,
    pub(super) desk: Desk,
    pub(super) mount: Mount,
    /// The leader that was heard last, and when.
    pub(super) last_heard: Mutex<Option<(u64, SimInstant)>>,
    pub(super) log: LogStore,
}

impl Running {
    /// Whether the power is still on.
    pub(super) fn is_live(&self) -> bool {
        self.mount.is_live()
    }
}

/// What a manager is started as.
#[derive(Clone)]
pub(super) struct Start {
    pub(super) node_id: String,
    pub(super) raft_id: u64,
    /// Of the manager that founds the cluster, also after it was restarted.
    pub(super) founding: Option<Founding>,
}

/// Raft's own configuration: the manager's (userspace/manager/src/config.rs) by this host's clock.
fn config(host: &Host) -> openraft::Config {
    let millis = |wanted: u64| {
        let taken = host.clock.takes(Duration::from_millis(wanted)).as_millis();
        u64::try_from(taken).expect("timers are short")
    };
    openraft::Config {
        cluster_name: "shoal".into(),
        heartbeat_interval: millis(150),
        election_timeout_min: millis(500),
        election_timeout_max: millis(1_000),
        install_snapshot_timeout: millis(5_000),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_AFTER),
        max_in_snapshot_log_to_keep: KEPT,
        purge_batch_size: 16,
        replication_lag_threshold: SNAPSHOT_AFTER + KEPT,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        // Else a leader ends when a follower has less than it said, as after a disk that lied.
        allow_log_reversion: Some(true),
        ..openraft::Config::default()
    }
}

/// Starts a manager from what the host's disk holds.
///
/// # Errors
/// The disk holds nonsense, or the power failed meanwhile.
pub(super) async fn start(
    world: &Arc<World>,
    host: &Arc<Host>,
    start: Start,
) -> Result<(), String> {
    let Start { node_id, raft_id, founding } = start;
    if !host.is_powered() {
        return Ok(());
    }
    let mount = host.disk.mount();
    let fail = |what: &dyn std::fmt::Display| format!("{node_id} cannot start: {what}");
    let log = LogStore::open(world, &mount, raft_id).map_err(|e| fail(&e))?;
    let view = Arc::new(View::default());
    let machine = StateMachine::open(world, &mount, raft_id, view.clone()).map_err(|e| fail(&e))?;
    let config = Arc::new(config(host).validate().map_err(|e| fail(&e))?);
    let network =
        Network { world: Arc::downgrade(world), mount: mount.clone(), host: host.number, raft_id };
    let raft = Raft::new(raft_id, config, network, log.clone(), machine).await;
    let raft = raft.map_err(|e| fail(&e))?;
    let running = Arc::new(Running {
        host: host.clone(),
        raft_id,
        raft: raft.clone(),
        view,
        desk: Desk::default(),
        mount,
        last_heard: Mutex::new(None),
        log,
    });
    if !running.is_live() {
        drop(raft.shutdown().await);
        return Ok(());
    }
    if founding.is_some() {
        let members = BTreeMap::from([(raft_id, Peer::of_host(host.number))]);
        match raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(failure) if running.is_live() => return Err(fail(&failure)),
            Err(_) => return Ok(()),
        }
    }
    if running.is_live() {
        *host.running.lock() = Some(running.clone());
        drop(SimRuntime::spawn(leader::supervise(world.clone(), running, founding)));
    }
    Ok(())
}
