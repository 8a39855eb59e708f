//! Starts and ends one manager.
//!
//! Raft runs on a runtime of its own, so that a burst of API work cannot starve its heartbeats.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use futures::future::BoxFuture;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::metrics::RaftMetrics;
use parking_lot::Mutex;
use shoal_api::write::Write as Kind;
use shoal_api::write_result::Result as Of;
use shoal_api::{
    IssuedCertificate, JoinRequest, JoinResponse, LeaveWrite, ManagerAddress, RenewWrite,
};
use shoal_control::Store;
use shoal_identity::BackupKey;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::service::Routes;
use tracing::{info, warn};

use crate::address_book::AddressBook;
use crate::announce::Announcer;
use crate::backup::{self, NodeFiles, Source};
use crate::compaction;
use crate::config::Config;
use crate::error::ManagerError;
use crate::force;
use crate::founding::Founding;
use crate::identity::{self, Identity, LOG, explain};
use crate::keeper::Keeper;
use crate::leader::{Desk, LastHeard, Leadership, Reply};
use crate::log_store::{self, LogStore, OpenError};
use crate::network::Network;
use crate::rpc::{self, Shared};
use crate::snapshot;
use crate::state_machine::{StateMachine, View};
use crate::types::{Peer, Raft, SnapshotMeta, TypeConfig};
use crate::vault::Vault;

/// Raft id of the manager that founds a cluster.
const FOUNDER: u64 = 1;
/// How long a new cluster may take: one manager on its own disk.
const INIT: Duration = Duration::from_secs(20);
/// How long a leaving leader waits for another to take over.
const HAND_OVER: Duration = Duration::from_secs(2);
/// How long the log's writer may take to end: one flush, unless the disk is full.
const CLOSE: Duration = Duration::from_secs(2);
const NO_STATE: &str = "this manager has not received the cluster's state yet";
/// Raft's threads: one flows over to the other while it writes.
const THREADS: usize = 2;

/// Whether a folder holds a manager's state, to be restarted.
#[must_use]
pub fn has_state(state_dir: &Path) -> bool {
    !matches!(identity::load(state_dir), Ok(None))
}

/// One member of the managers' Raft group. Dropped, it stops at once, as if it had been killed.
pub struct Manager {
    shared: Arc<Shared>,
    leadership: AbortHandle,
    runtime: RaftRuntime,
}

impl Manager {
    /// Founds a cluster with this manager as its only one, and returns when it leads.
    ///
    /// # Errors
    /// The folder is in use, the disk refuses, or it takes too long.
    pub async fn init(config: Config, founding: Founding) -> Result<Self, ManagerError> {
        let identity = Identity { node_id: config.node_id.clone(), raft_id: FOUNDER };
        let folder = config.state_dir.clone();
        identity::claim(&folder, &config.vault, &identity, Some(&founding))?;
        let (reply, founded) = oneshot::channel();
        let manager = Self::start(config, identity, Some(reply)).await?;
        match tokio::time::timeout(INIT, founded).await {
            Ok(Ok(Ok(_))) => Ok(manager),
            Ok(Ok(Err(refusal))) => {
                manager.shutdown().await;
                // Nothing half-made stays behind, so that the next try may be a right one.
                identity::disown(&folder)?;
                Err(ManagerError::Refused { reason: refusal.to_string() })
            }
            Ok(Err(_dropped)) => Err(ManagerError::raft("it ended while the cluster was founded")),
            Err(_late) => Err(ManagerError::Timeout { what: "founding the cluster", limit: INIT }),
        }
    }

    /// Starts a manager that was given this Raft id when its node joined or was promoted. It must
    /// be served at once: the leader brings it up to date and then lets it vote, see
    /// [`Manager::joined`].
    ///
    /// # Errors
    /// The folder is in use, or the disk refuses.
    pub async fn join(config: Config, raft_id: u64) -> Result<Self, ManagerError> {
        let identity = Identity { node_id: config.node_id.clone(), raft_id };
        identity::claim(&config.state_dir, &config.vault, &identity, None)?;
        Self::start(config, identity, None).await
    }

    /// Goes on from the disk.
    ///
    /// # Errors
    /// The folder holds no state, another node's, a damaged one, or only a part of one.
    pub async fn restart(config: Config) -> Result<Self, ManagerError> {
        force::finish(&config.state_dir)?;
        let identity = Self::own(&config)?;
        Self::start(config, identity, None).await
    }

    /// Goes on from the disk as the cluster's only manager, with all that this one has stored,
    /// committed or not. The other managers become workers; they must not come back as managers.
    ///
    /// * `node` - this manager's own, with the address that it is reached by now.
    ///
    /// # Errors
    /// As [`Manager::restart`]; a failure leaves the state as it was, or as it should become.
    pub async fn force_new_cluster(
        config: Config,
        node: JoinRequest,
    ) -> Result<Self, ManagerError> {
        force::finish(&config.state_dir)?;
        let identity = Self::own(&config)?;
        let (folder, vault) = (config.state_dir.clone(), config.vault.clone());
        let addr = config.advertise_addr.clone();
        let rewrite =
            move || force::rewrite(&folder, &vault, &identity, &node, &addr, &mut |_step| Ok(()));
        let rewritten = tokio::task::spawn_blocking(rewrite).await;
        let identity = rewritten.map_err(ManagerError::raft)??;
        Self::start(config, identity, None).await
    }

    /// Whose state the folder holds: this node's.
    fn own(config: &Config) -> Result<Identity, ManagerError> {
        let folder = || config.state_dir.clone();
        let Some(identity) = identity::load(&config.state_dir)? else {
            return Err(ManagerError::NoState { folder: folder() });
        };
        if identity.node_id != config.node_id {
            let (found, expected) = (identity.node_id, config.node_id.clone());
            return Err(ManagerError::AnotherNode { folder: folder(), found, expected });
        }
        Ok(identity)
    }

    async fn start(
        config: Config,
        identity: Identity,
        founding: Option<Reply>,
    ) -> Result<Self, ManagerError> {
        let Config { state_dir, node_id, advertise_addr, timings, vault, credentials, join_addrs } =
            config;
        let raft_id = identity.raft_id;
        let founder = identity::founding(&state_dir, &vault)?;
        let forced = identity::forced(&state_dir, &vault)?;
        let raft_config = timings.raft().validate().map_err(ManagerError::raft)?;
        let view = Arc::new(View::default());
        let log = open_log(&state_dir.join(LOG), &vault, &identity).await?;
        let disk = log.trouble();
        let machine = open_machine(&state_dir, &vault, &view, &log)?;
        let keeper = Keeper {
            folder: state_dir.clone(),
            raft_id,
            vault,
            log: log.clone(),
            machine: machine.clone(),
            view: view.clone(),
        };
        let book = Arc::new(AddressBook::new(ManagerAddress {
            raft_id,
            node_id: node_id.clone(),
            addr: advertise_addr.clone(),
            generation: generation(),
        }));
        let runtime = RaftRuntime::new().map_err(|e| ManagerError::io("run", &state_dir, e))?;
        let raft = {
            let (view, book, credentials) = (view.clone(), book.clone(), credentials.clone());
            let network = Network { id: raft_id, view, book, credentials };
            let start = Raft::new(raft_id, Arc::new(raft_config), network, log, machine);
            runtime.spawn(start).await.map_err(ManagerError::raft)?
        };
        let raft = raft.map_err(ManagerError::raft)?;
        if founder.is_some() {
            let members = BTreeMap::from([(raft_id, Peer { addr: advertise_addr })]);
            match raft.initialize(members).await {
                // Already done, before a restart.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(failure) => return Err(ManagerError::raft(failure)),
            }
        }
        info!(raft.id = raft_id, "manager started");
        let shared = Arc::new(Shared {
            raft: raft.clone(),
            raft_id,
            node_id,
            view: view.clone(),
            disk,
            desk: Desk::default(),
            last_heard: LastHeard::default(),
            credentials: credentials.clone(),
            book: book.clone(),
            line: rpc::to_leader::Line::default(),
            snapshots: Semaphore::new(rpc::raft::SNAPSHOTS),
            read_timeout: timings.read_timeout,
            write_timeout: timings.write_timeout,
            lease: timings.election_max,
        });
        let announcer = Announcer {
            raft: raft.clone(),
            view: view.clone(),
            book,
            desk: shared.desk.clone(),
            last_heard: shared.last_heard.clone(),
            credentials,
            join_addrs,
            patience: timings.election_max,
        };
        let limits =
            compaction::Limits { interval: timings.snapshot_after, kept: timings.kept_entries };
        runtime.spawn(announcer.run());
        runtime.spawn(compaction::run(raft.clone(), view.clone(), limits));
        let leadership = Leadership {
            raft,
            raft_id,
            view,
            desk: shared.desk.clone(),
            last_heard: shared.last_heard.clone(),
            bootstrap: founder,
            forced,
            founding: Mutex::new(founding),
            agent_heartbeat: timings.agent_heartbeat,
            lease: timings.election_max,
        };
        let leadership = runtime.spawn(leadership.run()).abort_handle();
        runtime.spawn(keeper.run());
        Ok(Self { shared, leadership, runtime })
    }

    /// What to serve at the advertised address. Turn Nagle's algorithm off there: Raft waits for
    /// every small answer.
    #[must_use]
    pub fn services(&self) -> Routes {
        rpc::routes(&self.shared)
    }

    /// What to serve on the machine's own socket: `Control`, in the name of this node.
    #[must_use]
    pub fn local_services(&self) -> Routes {
        rpc::local_routes(&self.shared)
    }

    /// Waits until this manager may vote and knows the leader.
    ///
    /// # Errors
    /// It took longer than `limit`, or Raft stopped.
    pub async fn joined(&self, limit: Duration) -> Result<(), ManagerError> {
        let raft_id = self.shared.raft_id;
        let is_member = |metrics: &RaftMetrics<TypeConfig>| {
            let members = &metrics.committed_membership_config;
            members.membership().voter_ids().any(|id| id == raft_id)
                && members.log_id() == metrics.membership_config.log_id()
                && metrics.current_leader.is_some()
        };
        self.until(limit, "joining the managers", is_member).await
    }

    /// `host:port` of the leader, as far as this manager knows.
    #[must_use]
    pub fn leader_addr(&self) -> Option<String> {
        rpc::leader_addr(&self.shared)
    }

    /// Takes this node's manager out of Raft and its node down, for good. The cluster refuses where
    /// too few managers would be left.
    ///
    /// # Errors
    /// The leader refused, or there is none.
    pub async fn leave(&self) -> Result<(), Status> {
        let node_id = self.shared.node_id.clone();
        rpc::write(&self.shared, Kind::Leave(LeaveWrite { node_id })).await.map(drop)
    }

    /// A new certificate for this node's own key, where its old one serves no more: after a restore
    /// it may have expired. Others ask by `Ca.Renew`.
    ///
    /// # Errors
    /// The leader refused, or there is none.
    pub async fn renew(&self, csr: Vec<u8>) -> Result<IssuedCertificate, Status> {
        let renew = RenewWrite { node_id: self.shared.node_id.clone(), csr };
        match rpc::write(&self.shared, Kind::Renew(renew)).await?.result {
            Some(Of::Joined(JoinResponse { certificate: Some(certificate), .. })) => {
                Ok(certificate)
            }
            _ => Err(rpc::status::unexpected()),
        }
    }

    /// Node ids of the managers that the leader reaches, itself among them.
    ///
    /// # Errors
    /// There is no leader.
    pub async fn reachable(&self) -> Result<Vec<String>, Status> {
        rpc::reachable(&self.shared).await
    }

    /// Whether this manager leads and serves.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.shared.desk.is_open()
    }

    /// Id under which it takes part in Raft.
    #[must_use]
    pub fn raft_id(&self) -> u64 {
        self.shared.raft_id
    }

    /// Id of the cluster, once this manager knows it.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        self.shared.view.cluster_id()
    }

    /// Index of the newest entry in this manager's store.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        *self.shared.view.events.applied().borrow()
    }

    /// Returns, with the reason, when Raft cannot go on; the process should end then.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.shared.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "Raft has ended".into();
            }
        }
    }

    /// This manager's state as a sealed file, in pieces: what it has applied by now, with or without
    /// a quorum. It goes on meanwhile.
    ///
    /// * `files` - who this manager is, as the daemon keeps it.
    ///
    /// # Errors
    /// Raft has stopped, or this manager has not received the cluster's state yet. The pieces end
    /// with an error when the state cannot be encoded.
    pub async fn backup(
        &self,
        key: BackupKey,
        files: NodeFiles,
    ) -> Result<impl Stream<Item = io::Result<Vec<u8>>> + use<>, ManagerError> {
        let now = self.shared.raft.with_state_machine(now).await;
        let (meta, store) = now.map_err(ManagerError::raft)?;
        if store.cluster().is_none() {
            return Err(ManagerError::Refused { reason: NO_STATE.into() });
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_at_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        let identity =
            Identity { node_id: self.shared.node_id.clone(), raft_id: self.shared.raft_id };
        let source = Source { identity, files, created_at_ns, meta, store };
        // Two pieces wait, so that a slow reader holds the writer back and not the memory.
        let (pieces, taken) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            let keep = |piece| pieces.blocking_send(Ok(piece)).is_ok();
            if let Err(failure) = backup::write(source, &key, keep) {
                drop(pieces.blocking_send(Err(failure)));
            }
        });
        Ok(ReceiverStream::new(taken))
    }

    /// Hands leadership over, writes what is left, and ends.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.leadership.abort();
        if let Err(failure) = self.shared.raft.shutdown().await {
            warn!(%failure, "Raft did not end well");
        }
        let disk = self.shared.disk.clone();
        self.runtime.shutdown().await;
        if tokio::time::timeout(CLOSE, log_store::closed(disk)).await.is_err() {
            warn!("the log is not closed yet");
        }
    }

    /// Followers would notice a missing leader only after their election time-out.
    async fn hand_over(&self) {
        let to = {
            let metrics = self.shared.raft.metrics();
            let now = metrics.borrow_watched();
            let voters: Vec<u64> = now.membership_config.membership().voter_ids().collect();
            let progress = now.replication.clone().unwrap_or_default();
            let others = progress.into_iter().filter(|(id, matched)| {
                *id != self.shared.raft_id && matched.is_some() && voters.contains(id)
            });
            others.max_by_key(|(_, matched)| *matched).map(|(id, _)| id)
        };
        let Some(to) = to else { return };
        if let Err(failure) = self.shared.raft.trigger().transfer_leader(to).await {
            warn!(%failure, "leadership was not handed over");
            return;
        }
        let handed_over = |metrics: &RaftMetrics<TypeConfig>| metrics.state != ServerState::Leader;
        if self.until(HAND_OVER, "handing leadership over", handed_over).await.is_err() {
            warn!("no other manager took over in time");
        }
    }

    async fn until(
        &self,
        limit: Duration,
        what: &'static str,
        holds: impl Fn(&RaftMetrics<TypeConfig>) -> bool,
    ) -> Result<(), ManagerError> {
        let mut metrics = self.shared.raft.metrics();
        let wait = async {
            loop {
                {
                    let now = metrics.borrow_and_update();
                    if let Err(fatal) = &now.running_state {
                        return Err(ManagerError::raft(fatal));
                    }
                    if holds(&now) {
                        return Ok(());
                    }
                }
                if metrics.changed().await.is_err() {
                    return Err(ManagerError::raft("it has ended"));
                }
            }
        };
        let result = tokio::time::timeout(limit, wait).await;
        result.map_err(|_late| ManagerError::Timeout { what, limit })?
    }
}

fn now(machine: &mut StateMachine) -> BoxFuture<'_, (SnapshotMeta, Store)> {
    Box::pin(std::future::ready(machine.now()))
}

/// Tells a later start of a manager from an earlier one.
fn generation() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

/// A process that was just killed may hold the log a moment longer.
async fn open_log(path: &Path, vault: &Vault, owner: &Identity) -> Result<LogStore, ManagerError> {
    const TRIES: u32 = 20;
    for _ in 1..TRIES {
        match LogStore::open(path, vault, owner) {
            Err(OpenError::Locked) => tokio::time::sleep(Duration::from_millis(100)).await,
            other => return other.map_err(|e| explain(e, path)),
        }
    }
    LogStore::open(path, vault, owner).map_err(|e| explain(e, path))
}

/// The state machine must hold all that the log does not hold any more.
fn open_machine(
    folder: &Path,
    vault: &Vault,
    view: &Arc<View>,
    log: &LogStore,
) -> Result<StateMachine, ManagerError> {
    let path = folder.join(snapshot::FILE);
    let opened = StateMachine::open(folder.into(), vault.clone(), view.clone());
    let machine = opened.map_err(|e| snapshot::explain(e, &path))?;
    match (log.purged(), machine.applied()) {
        (Some(_), None) => Err(ManagerError::Lost { path }),
        (Some(purged), Some(applied)) if applied < purged => {
            let reason = format!("it is of entry {applied}, the log begins after {purged}");
            Err(ManagerError::Damaged { path, reason })
        }
        _ => Ok(machine),
    }
}

/// Raft's own threads. A runtime must not be dropped where tasks run, so it is ended in the
/// background.
struct RaftRuntime(Mutex<Option<Runtime>>);

impl RaftRuntime {
    fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("raft")
            .enable_all()
            .build()?;
        Ok(Self(Mutex::new(Some(runtime))))
    }

    fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let runtime = self.0.lock();
        runtime.as_ref().expect("tasks are spawned while the manager starts").spawn(task)
    }

    async fn shutdown(&self) {
        let runtime = self.0.lock().take();
        if let Some(runtime) = runtime {
            let end = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(CLOSE));
            drop(end.await);
        }
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.get_mut().take() {
            runtime.shutdown_background();
        }
    }
}
