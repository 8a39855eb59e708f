//! Applies committed entries to the store, and makes and takes snapshots of it.
//!
//! The store lives in memory; a restarted manager reads its snapshot and replays the log. Every
//! manager runs this alike, so nothing here depends on a clock or on who leads.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use parking_lot::RwLock;
use shoal_control::Store;
use tracing::{debug, error, warn};

use crate::events::Events;
use crate::snapshot::{self, older};
use crate::types::{LogId, Outcome, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::vault::Vault;

/// Between two tries to write a snapshot to a disk that refuses: the log only grows meanwhile.
const RETRY: Duration = Duration::from_secs(2);

/// What readers share with the state machine.
#[derive(Default)]
pub struct View {
    store: RwLock<Store>,
    /// What changed, in order.
    pub events: Events,
}

impl View {
    /// The store as of the last applied entry; cheap.
    #[must_use]
    pub fn store(&self) -> Store {
        self.store.read().clone()
    }

    /// Raft ids of all managers, as far as this one knows.
    #[must_use]
    pub fn raft_ids(&self) -> BTreeSet<u64> {
        let store = self.store.read();
        let managers = store.nodes().filter_map(|node| node.manager.as_ref());
        managers.map(|manager| manager.raft_id).collect()
    }

    /// Id of the cluster, once this manager knows it.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        self.store.read().cluster().map(|cluster| cluster.id.clone())
    }
}

/// Raft's state machine around the store.
#[derive(Clone)]
pub struct StateMachine {
    view: Arc<View>,
    folder: PathBuf,
    vault: Vault,
    applied: Option<LogId>,
    membership: StoredMembership,
    current: Arc<RwLock<Option<Current>>>,
    saving: Arc<tokio::sync::Mutex<()>>,
}

/// The snapshot on the disk. Its bytes are in memory only while somebody sends them.
struct Current {
    meta: SnapshotMeta,
    bytes: Weak<Vec<u8>>,
}

impl StateMachine {
    /// Starts from the snapshot in `folder`, or empty.
    ///
    /// # Errors
    /// The snapshot cannot be read or is damaged.
    pub fn open(folder: PathBuf, vault: Vault, view: Arc<View>) -> io::Result<Self> {
        let mut machine = Self {
            view,
            folder,
            vault,
            applied: None,
            membership: StoredMembership::default(),
            current: Arc::default(),
            saving: Arc::default(),
        };
        if let Some(bytes) = snapshot::load(&machine.folder, &machine.vault)? {
            let (meta, store) = snapshot::decode(&bytes)?;
            machine.take(&meta, store);
            *machine.current.write() = Some(Current { meta, bytes: Weak::new() });
        }
        Ok(machine)
    }

    /// Index of the last entry that the snapshot holds, right after [`StateMachine::open`].
    pub fn applied(&self) -> Option<u64> {
        self.applied.map(|last| last.index)
    }

    /// Seals the snapshot on the disk under the vault's newest key, and takes away the older ones,
    /// which are sealed under others.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn reseal(&self) -> io::Result<()> {
        let _only_one = self.saving.lock().await;
        let (folder, vault) = (self.folder.clone(), self.vault.clone());
        let again = move || {
            older::prune(&folder, 0)?;
            match snapshot::load(&folder, &vault)? {
                Some(bytes) => snapshot::save(&folder, &vault, &bytes),
                None => Ok(()),
            }
        };
        tokio::task::spawn_blocking(again).await.map_err(io::Error::other)?
    }

    /// Takes away all but the newest `count` of the snapshots beside the newest.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn prune_older(&self, count: usize) -> io::Result<()> {
        let _only_one = self.saving.lock().await;
        let folder = self.folder.clone();
        let prune = move || older::prune(&folder, count);
        tokio::task::spawn_blocking(prune).await.map_err(io::Error::other)?
    }

    fn take(&mut self, meta: &SnapshotMeta, store: Store) {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.view.store.write() = store;
        self.view.events.restart(meta.last_log_id.map_or(0, |last| last.index));
    }

    /// Writes the snapshot however long the disk refuses: without it the log must grow on, and a
    /// failure reported to Raft would end this manager.
    ///
    /// One that is being built may be older than one that came from the leader meanwhile; it must
    /// not take that one's place, for the log between them is gone.
    async fn save(&self, meta: &SnapshotMeta, bytes: Arc<Vec<u8>>) -> io::Result<()> {
        loop {
            match self.try_save(meta, &bytes).await? {
                Ok(()) => return Ok(()),
                Err(refused) => error!(error = %refused, "cannot write a snapshot, trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_save(
        &self,
        meta: &SnapshotMeta,
        bytes: &Arc<Vec<u8>>,
    ) -> io::Result<io::Result<()>> {
        let _only_one = self.saving.lock().await;
        let covers = |current: &Current| current.meta.last_log_id >= meta.last_log_id;
        if self.current.read().as_ref().is_some_and(covers) {
            return Ok(Ok(()));
        }
        let (folder, vault, copy) = (self.folder.clone(), self.vault.clone(), bytes.clone());
        let last = self.current.read().as_ref().and_then(|current| current.meta.last_log_id);
        let keep = older::wanted(&self.view.store()).unwrap_or(0);
        let save = move || {
            // The newest counts, the older ones are for whoever looks back.
            let refused = |what: &str, done: io::Result<()>| {
                done.unwrap_or_else(|error| warn!(%error, "cannot {what} an older snapshot"));
            };
            if let Some(last) = last.filter(|_| keep > 0) {
                refused("keep", older::keep(&folder, last.index));
            }
            snapshot::save(&folder, &vault, &copy)?;
            refused("take away", older::prune(&folder, keep));
            Ok(())
        };
        let written = tokio::task::spawn_blocking(save).await.map_err(io::Error::other)?;
        if written.is_ok() {
            let bytes = Arc::downgrade(bytes);
            *self.current.write() = Some(Current { meta: meta.clone(), bytes });
        }
        Ok(written)
    }

    /// What a snapshot of now would hold; cheap.
    pub fn now(&self) -> (SnapshotMeta, Store) {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        (meta, self.view.store())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Arc<Vec<u8>>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = entry.log_id.index;
            let mut outcome = Outcome { index, ..Outcome::default() };
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                }
                EntryPayload::Normal(proposal) => {
                    match self.view.store.write().apply(index, &proposal.0) {
                        Ok(events) => outcome.events = Arc::new(events),
                        Err(conflict) => {
                            debug!(index, %conflict, "a batch was refused");
                            outcome.conflict = Some(conflict.to_string());
                        }
                    }
                }
            }
            self.applied = Some(entry.log_id);
            self.view.events.publish(index, outcome.events.clone());
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let (meta, store) = self.now();
        Builder { store, meta, machine: self.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        bytes: Arc<Vec<u8>>,
    ) -> io::Result<()> {
        let (_, store) = snapshot::decode(&bytes)?;
        self.save(meta, bytes).await?;
        self.take(meta, store);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        // While it is read no other takes its place.
        let _only_one = self.saving.lock().await;
        let Some((meta, known)) = self
            .current
            .read()
            .as_ref()
            .map(|current| (current.meta.clone(), current.bytes.upgrade()))
        else {
            return Ok(None);
        };
        if let Some(snapshot) = known {
            return Ok(Some(Snapshot { meta, snapshot }));
        }
        let (folder, vault) = (self.folder.clone(), self.vault.clone());
        let read = tokio::task::spawn_blocking(move || snapshot::load(&folder, &vault)).await;
        let bytes = read.map_err(io::Error::other)??;
        let bytes = Arc::new(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?);
        *self.current.write() = Some(Current { meta: meta.clone(), bytes: Arc::downgrade(&bytes) });
        Ok(Some(Snapshot { meta, snapshot: bytes }))
    }
}

/// Writes a snapshot of the store as it was when the builder was made.
pub struct Builder {
    store: Store,
    meta: SnapshotMeta,
    machine: StateMachine,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Arc<Vec<u8>>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let bytes = Arc::new(snapshot::encode(&self.meta, &self.store)?);
        self.machine.save(&self.meta, bytes.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: bytes })
    }
}

#[cfg(test)]
mod tests;
