//! Applies committed entries to the real store, and makes and takes snapshots of it, as the
//! manager's state machine does: the snapshot is written beside the old one, synced, renamed.

use std::io;
use std::sync::{Arc, Weak};

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{AsyncRuntime, EntryPayload, RaftSnapshotBuilder};
use openraft_rt_sim::SimRuntime;
use parking_lot::RwLock;
use prost::Message;
use shoal_control::Store;

use super::disk::Mount;
use super::invariants::Event;
use super::types::{
    LogId, Outcome, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, decode, encode, invalid,
};
use super::world::World;

const FILE: &str = "snapshot";
const NEW: &str = "snapshot.new";

/// The store as of the last applied entry.
#[derive(Default)]
pub(super) struct View(RwLock<(u64, Store)>);

impl View {
    pub(super) fn store(&self) -> Store {
        self.0.read().1.clone()
    }

    /// Index of the newest applied entry, with or without changes.
    pub(super) fn applied(&self) -> u64 {
        self.0.read().0
    }
}

/// Raft's state machine around the store.
#[derive(Clone)]
pub struct StateMachine {
    world: Weak<World>,
    raft_id: u64,
    mount: Mount,
    view: Arc<View>,
    applied: Option<LogId>,
    membership: StoredMembership,
    current: Arc<RwLock<Option<Snapshot>>>,
    saving: Arc<tokio::sync::Mutex<()>>,
}

impl StateMachine {
    /// Starts from the snapshot on the disk, or empty.
    pub(super) fn open(
        world: &Arc<World>,
        mount: &Mount,
        raft_id: u64,
        view: Arc<View>,
    ) -> io::Result<Self> {
        let mut machine = Self {
            world: Arc::downgrade(world),
            raft_id,
            mount: mount.clone(),
            view,
            applied: None,
            membership: StoredMembership::default(),
            current: Arc::default(),
            saving: Arc::default(),
        };
        if let Some(bytes) = mount.read(FILE)? {
            let (meta, store) = unpack(&bytes)?;
            machine.take(&meta, store);
            *machine.current.write() = Some(Snapshot { meta, snapshot: Arc::new(bytes) });
        }
        Ok(machine)
    }

    fn take(&mut self, meta: &SnapshotMeta, store: Store) {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.observe(&Event::Restored { raft_id: self.raft_id, meta, store: &store });
        *self.view.0.write() = (meta.last_log_id.map_or(0, |last| last.index), store);
    }

    fn observe(&self, event: &Event<'_>) {
        if let Some(world) = self.world.upgrade() {
            world.judge.observe(event);
        }
    }

    async fn save(&self, meta: &SnapshotMeta, bytes: Arc<Vec<u8>>) -> io::Result<()> {
        let _only_one = self.saving.lock().await;
        let covers = |current: &Snapshot| current.meta.last_log_id >= meta.last_log_id;
        if self.current.read().as_ref().is_some_and(covers) {
            return Ok(());
        }
        self.mount.cut(NEW, 0)?;
        self.mount.append(NEW, &bytes)?;
        SimRuntime::sleep(self.mount.sync_time()).await;
        self.mount.sync(NEW)?;
        self.mount.rename(NEW, FILE)?;
        self.mount.sync_folder()?;
        *self.current.write() = Some(Snapshot { meta: meta.clone(), snapshot: bytes });
        Ok(())
    }
}

fn pack(meta: &SnapshotMeta, store: &Store) -> io::Result<Vec<u8>> {
    let head = encode(meta)?;
    let mut rest = u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
    rest.extend(head);
    store.snapshot().encode(&mut rest)?;
    let mut bytes = crc32fast::hash(&rest).to_le_bytes().to_vec();
    bytes.extend(rest);
    Ok(bytes)
}

pub(super) fn unpack(bytes: &[u8]) -> io::Result<(SnapshotMeta, Store)> {
    let damaged = || invalid("the snapshot is damaged");
    let (checksum, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*checksum) {
        return Err(damaged());
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(invalid)?;
    let (head, objects) = rest.split_at_checked(length).ok_or_else(damaged)?;
    let objects = shoal_api::Snapshot::decode(objects).map_err(invalid)?;
    Ok((decode(head)?, Store::restore(objects)))
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
            {
                let mut view = self.view.0.write();
                match &entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Membership(membership) => {
                        self.membership =
                            StoredMembership::new(Some(entry.log_id), membership.clone());
                    }
                    EntryPayload::Normal(proposal) => {
                        if let Err(conflict) = view.1.apply(index, &proposal.batch) {
                            outcome.conflict = Some(conflict.to_string());
                        }
                    }
                }
                view.0 = index;
            }
            if self.mount.is_live() {
                let before = self.applied;
                let conflict = outcome.conflict.as_deref();
                let raft_id = self.raft_id;
                self.observe(&Event::Applied { raft_id, before, entry: &entry, conflict });
            }
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Builder { store: self.view.store(), meta, machine: self.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        bytes: Arc<Vec<u8>>,
    ) -> io::Result<()> {
        let (_, store) = unpack(&bytes)?;
        self.save(meta, bytes).await?;
        self.take(meta, store);
        if let Some(world) = self.world.upgrade() {
            world.seen.lock().snapshots += 1;
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.current.read().clone())
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
        let bytes = Arc::new(pack(&self.meta, &self.store)?);
        self.machine.save(&self.meta, bytes.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: bytes })
    }
}
