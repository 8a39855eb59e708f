//! A manager's state as one sealed file, and the way back from it.
//!
//! A backup holds a snapshot of the store, of the newest entry that this manager has applied, and
//! who the manager is: certificate, key, roots. It is made while the manager runs, with or without
//! a quorum, and says of which entry it is. It is sealed under a key of its own, not the unlock
//! key: whoever holds both file and key can become the cluster.
//!
//! Restoring reads the file to its end and believes nothing of it before; then it writes a new
//! folder beside the wanted one and renames it. What comes out is a manager that must go on alone
//! ([`Manager::force_new_cluster`](crate::Manager::force_new_cluster)): the cluster that it was of
//! may have gone on since.
//!
//! File, little endian: magic, version `u32`, and the stream that `shoal_identity::stream` seals
//! with these as context. In it: length of the manifest `u32`, manifest (protobuf), snapshot.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use prost::Message;
use shoal_control::Store;
use shoal_identity::{BackupKey, StreamError, StreamOpener, StreamSealer, UnlockKey};
use zeroize::Zeroizing;

use crate::error::ManagerError;
use crate::files::{self, Disk, Os};
use crate::identity::{self, Identity, LOG, explain};
use crate::log_store::{Beginning, LogStore};
use crate::snapshot;
use crate::types::{SnapshotMeta, Vote, invalid};
use crate::vault::Vault;

const MAGIC: &[u8; 8] = b"SHOALBAK";
/// Version of the file.
pub const VERSION: u32 = 1;
const HEADER: usize = 12;
/// Longest manifest: a few certificates. More is no manifest.
const MANIFEST: usize = 1 << 20;
/// Read, sealed and handed on at once.
const PIECE: usize = 1 << 20;

/// Why a file cannot be restored. Nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Some other file.
    #[error("this is not a backup of Shoal")]
    Foreign,
    /// Of a newer release.
    #[error("this backup is of version {found}, this release reads {VERSION}")]
    Version {
        /// The file's version.
        found: u32,
    },
    /// Sealed under another key, or damaged where that cannot be told apart.
    #[error("this backup does not open: the key is another one's, or the file is damaged")]
    WrongKey,
    /// Cut off.
    #[error("this backup is not complete: its end is missing")]
    Truncated,
    /// Changed, or not what a backup holds.
    #[error("this backup is damaged: {reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// More than a restored manager could hold in its memory.
    #[error("this backup is too large: it holds more than {} MiB", snapshot::LARGEST >> 20)]
    TooLarge,
    /// It cannot be read.
    #[error("the backup cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl From<StreamError> for BackupError {
    fn from(failure: StreamError) -> Self {
        match failure {
            StreamError::TooShort | StreamError::Truncated { .. } => Self::Truncated,
            StreamError::WrongKey => Self::WrongKey,
            StreamError::Damaged { .. } => Self::Damaged { reason: failure.to_string() },
        }
    }
}

/// Who a manager is: what the daemon keeps beside the Raft folder.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NodeFiles {
    /// Certificate chain.
    pub chain_pem: String,
    /// Private key.
    pub key_pem: Zeroizing<String>,
    /// Roots to trust.
    pub roots_pem: String,
    /// What else the daemon wants to find again.
    pub record: Vec<u8>,
}

/// What a backup says of itself; fields may be added.
#[derive(Clone, PartialEq, prost::Message)]
struct Manifest {
    #[prost(string, tag = "1")]
    cluster_id: String,
    #[prost(string, tag = "2")]
    node_id: String,
    #[prost(uint64, tag = "3")]
    raft_id: u64,
    /// Of the newest entry in the snapshot.
    #[prost(uint64, tag = "4")]
    index: u64,
    #[prost(uint64, tag = "5")]
    created_at_ns: u64,
    #[prost(string, tag = "6")]
    release: String,
    #[prost(string, tag = "7")]
    chain_pem: String,
    #[prost(string, tag = "8")]
    key_pem: String,
    #[prost(string, tag = "9")]
    roots_pem: String,
    #[prost(bytes = "vec", tag = "10")]
    record: Vec<u8>,
}

/// What a backup is made of.
pub(crate) struct Source {
    /// Whose it is.
    pub identity: Identity,
    /// Who that is to others.
    pub files: NodeFiles,
    /// Nanoseconds since 1970.
    pub created_at_ns: u64,
    /// What the store is of.
    pub meta: SnapshotMeta,
    /// All objects.
    pub store: Store,
}

/// Writes a backup, a piece at a time; `false` from `out` ends it.
///
/// # Errors
/// The snapshot cannot be encoded, or would be too large to be restored.
pub(crate) fn write(
    source: Source,
    key: &BackupKey,
    mut out: impl FnMut(Vec<u8>) -> bool,
) -> io::Result<()> {
    let Source { identity, files, created_at_ns, meta, store } = source;
    let manifest = Manifest {
        cluster_id: store.cluster().map(|cluster| cluster.id.clone()).unwrap_or_default(),
        node_id: identity.node_id,
        raft_id: identity.raft_id,
        index: meta.last_log_id.map_or(0, |last| last.index),
        created_at_ns,
        release: env!("CARGO_PKG_VERSION").into(),
        chain_pem: files.chain_pem,
        key_pem: files.key_pem.to_string(),
        roots_pem: files.roots_pem,
        record: files.record,
    };
    let snapshot = snapshot::encode(&meta, &store)?;
    drop(store);
    if snapshot.len() > snapshot::LARGEST {
        return Err(invalid(BackupError::TooLarge));
    }
    let manifest = Zeroizing::new(manifest.encode_to_vec());
    let length = u32::try_from(manifest.len()).map_err(io::Error::other)?;
    let mut piece = header(VERSION);
    let context = piece.clone();
    let mut sealer = StreamSealer::new(key.as_bytes(), rand::random(), &context, &mut piece);
    sealer.push(&length.to_le_bytes(), &mut piece);
    sealer.push(&manifest, &mut piece);
    for part in snapshot.chunks(PIECE) {
        sealer.push(part, &mut piece);
        if !out(std::mem::take(&mut piece)) {
            return Ok(());
        }
    }
    sealer.finish(&mut piece);
    out(piece);
    Ok(())
}

fn header(version: u32) -> Vec<u8> {
    [&MAGIC[..], &version.to_le_bytes()].concat()
}

/// A backup that was read to its end and is whole.
pub struct Restored {
    manifest: Manifest,
    meta: SnapshotMeta,
    store: Store,
    snapshot: Vec<u8>,
}

/// Reads a backup to its end.
///
/// # Errors
/// It is no backup, of another version, sealed under another key, damaged, cut off or too large.
pub fn open(reader: impl Read, key: &BackupKey) -> Result<Restored, BackupError> {
    open_within(reader, key, snapshot::LARGEST + MANIFEST)
}

/// No more than `limit` bytes are held, whatever the file's length.
fn open_within(
    mut reader: impl Read,
    key: &BackupKey,
    limit: usize,
) -> Result<Restored, BackupError> {
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match reader.read(&mut header[have..])? {
            0 => return Err(BackupError::Foreign),
            read => have += read,
        }
    }
    if !header.starts_with(MAGIC) {
        return Err(BackupError::Foreign);
    }
    let version = u32::from_le_bytes(header[8..].try_into().expect("four bytes make a word"));
    if version != VERSION {
        return Err(BackupError::Version { found: version });
    }
    let mut opener = StreamOpener::new(key.as_bytes(), &header);
    let (mut sealed, mut bytes) = (vec![0; PIECE], Vec::new());
    loop {
        match reader.read(&mut sealed)? {
            0 => break,
            read => opener.push(&sealed[..read], &mut bytes)?,
        }
        if bytes.len() > limit {
            return Err(BackupError::TooLarge);
        }
    }
    opener.finish(&mut bytes)?;
    parse(bytes)
}

fn parse(mut bytes: Vec<u8>) -> Result<Restored, BackupError> {
    let damaged = |reason: &str| BackupError::Damaged { reason: reason.into() };
    let (length, rest) = bytes.split_first_chunk().ok_or_else(|| damaged("no manifest"))?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MANIFEST || length > rest.len() {
        return Err(damaged("no manifest"));
    }
    let manifest = Manifest::decode(&rest[..length]).map_err(|_| damaged("no manifest"))?;
    bytes.drain(..4 + length);
    let (meta, store) =
        snapshot::decode(&bytes).map_err(|e| BackupError::Damaged { reason: e.to_string() })?;
    let index = meta.last_log_id.map_or(0, |last| last.index);
    if store.cluster().is_none_or(|cluster| cluster.id != manifest.cluster_id)
        || manifest.node_id.is_empty()
        || manifest.raft_id == 0
        || index == 0
        || index != manifest.index
    {
        return Err(damaged("its parts do not belong together"));
    }
    Ok(Restored { manifest, meta, store, snapshot: bytes })
}

impl Restored {
    /// Id of the cluster.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.manifest.cluster_id
    }

    /// Id of the manager's node.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.manifest.node_id
    }

    /// Index of the newest entry in it.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.manifest.index
    }

    /// When it was made, in nanoseconds since 1970.
    #[must_use]
    pub fn created_at_ns(&self) -> u64 {
        self.manifest.created_at_ns
    }

    /// The release that made it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.manifest.release
    }

    /// Who the manager is.
    #[must_use]
    pub fn files(&self) -> NodeFiles {
        NodeFiles {
            chain_pem: self.manifest.chain_pem.clone(),
            key_pem: Zeroizing::new(self.manifest.key_pem.clone()),
            roots_pem: self.manifest.roots_pem.clone(),
            record: self.manifest.record.clone(),
        }
    }

    /// The unlock key of the cluster; its managers ask for it after a restart.
    #[must_use]
    pub fn unlock_key(&self) -> Option<UnlockKey> {
        let cluster = self.store.cluster()?;
        UnlockKey::parse(&cluster.unlock_key).ok()
    }

    /// Makes the Raft folder and gives the vault that it is sealed by, locked by the cluster's
    /// unlock key if there is one. The folder appears whole or not at all.
    ///
    /// # Errors
    /// The folder is there and not empty, or the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<Vault, ManagerError> {
        let failed = |e: io::Error| ManagerError::io("write", folder, e);
        match fs::read_dir(folder).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(ManagerError::InUse { folder: folder.into() }),
            Ok(false) => fs::remove_dir(folder).map_err(failed)?,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(failure) => return Err(failed(failure)),
        }
        let parent = folder.parent().expect("a Raft folder lies in a state directory");
        files::make_folder(parent).map_err(failed)?;
        let temporary = files::beside(folder);
        clear(&temporary).map_err(failed)?;
        let written = self.fill(&temporary).and_then(|()| {
            Os.rename(&temporary, folder).and_then(|()| Os.sync_folder(parent)).map_err(failed)
        });
        if let Err(refused) = written {
            drop(clear(&temporary));
            return Err(refused);
        }
        Ok(Vault::open(folder, self.unlock_key().as_ref())?)
    }

    fn fill(&self, folder: &Path) -> Result<(), ManagerError> {
        let vault = Vault::create(folder, self.unlock_key().as_ref())?;
        let path = folder.join(snapshot::FILE);
        snapshot::save(folder, &vault, &self.snapshot)
            .map_err(|e| ManagerError::io("write", &path, e))?;
        let Manifest { node_id, raft_id, .. } = &self.manifest;
        let owner = Identity { node_id: node_id.clone(), raft_id: *raft_id };
        let last = self.meta.last_log_id;
        let term = last.map_or(0, |last| last.leader_id.term);
        let vote = Some(Vote::new(term, *raft_id));
        let log = folder.join(LOG);
        let beginning = Beginning { owner: owner.clone(), purged: last, vote };
        LogStore::create(&log, &vault, &beginning).map_err(|e| explain(e, &log))?;
        let path = folder.join(identity::FILE);
        files::replace(&Os, &path, identity::text(&owner).as_bytes())
            .map_err(|e| ManagerError::io("write", &path, e))
    }
}

/// Takes a folder away that an earlier try left behind.
fn clear(folder: &PathBuf) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(failure) if failure.kind() != io::ErrorKind::NotFound => Err(failure),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
