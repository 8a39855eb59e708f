//! The keys that seal what a manager keeps on its disk.
//!
//! One file in the Raft folder holds the data keys: as they are, for its owner's eyes only, or,
//! with autolock, sealed under the cluster's unlock key. Everything else in the folder is sealed
//! under a data key, each record with the place it belongs to in the associated data, so that no
//! record can stand in for another. A change of the unlock key brings a new data key: the newest
//! seals, older ones still open until all that they sealed is gone ([`Vault::retire`]).
//!
//! The cipher is `shoal_identity`'s; nothing here knows what is sealed.
//!
//! File, little endian: magic, version `u32`, kind `u8`, then for kind 0 a CRC-32 and the keys, for
//! kind 1 the keys sealed. Keys: id `u32` and 32 bytes each, oldest first. A sealed record: version
//! `u8`, key's id `u32`, and what `shoal_identity::seal` gives.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use shoal_identity::{UnlockKey, seal};
use zeroize::Zeroizing;

use crate::files::{self, Disk, Os};

/// Name in the Raft folder.
pub const FILE: &str = "vault";
const MAGIC: &[u8; 8] = b"SHOALVLT";
const VERSION: u32 = 1;
/// Magic, version and kind.
const HEADER: usize = 13;
const PLAIN: u8 = 0;
const SEALED: u8 = 1;
/// Version of a sealed record.
const RECORD: u8 = 1;
/// Version and key id in front of a sealed record.
const RECORD_HEADER: usize = 5;

/// Why a vault cannot be opened or changed, or a record not be opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// It is sealed and no key was given.
    #[error("the manager's keys are locked by the unlock key")]
    Locked,
    /// The unlock key is another one.
    #[error("invalid key provided")]
    WrongKey,
    /// There is none.
    #[error(
        "{} is missing: what this manager has stored cannot be read without it",
        path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is one already.
    #[error("{} is there already", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
    },
    /// Of another release.
    #[error("{} is of version {version}, this release reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Not what it should be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record was changed, is another place's, or was sealed by another manager.
    #[error("sealed data is damaged or not of this manager")]
    Unsealable,
    /// A record of another release.
    #[error("sealed data is of version {0}, this release reads {RECORD}")]
    RecordVersion(u8),
    /// The disk refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, `create` or `remove`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

type Bytes32 = Zeroizing<[u8; 32]>;

/// The opened keys. Clones share them.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    path: PathBuf,
    state: RwLock<State>,
    /// Files elsewhere that this vault seals, with their contexts. Held while one is written.
    files: Mutex<BTreeMap<PathBuf, String>>,
}

#[derive(Clone)]
struct State {
    /// Never empty.
    keys: BTreeMap<u32, Bytes32>,
    /// What the file is sealed under; `None`: nothing.
    lock: Option<Bytes32>,
    /// Version of the cluster object that said so: a store that is replayed has older ones.
    version: u64,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("path", &self.0.path).finish_non_exhaustive()
    }
}

/// Whether the folder's vault waits for an unlock key.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn is_locked(folder: &Path) -> Result<bool, VaultError> {
    let (path, bytes) = load(folder)?;
    Ok(kind(&path, &bytes)? == SEALED)
}

impl Vault {
    /// Makes the folder's vault with one new data key.
    ///
    /// # Errors
    /// There is one, or the disk refuses.
    pub fn create(folder: &Path, unlock: Option<&UnlockKey>) -> Result<Self, VaultError> {
        let path = folder.join(FILE);
        if path.exists() {
            return Err(VaultError::InUse { path });
        }
        files::make_folder(folder).map_err(|e| failed("create", folder, e))?;
        let state =
            State { keys: BTreeMap::from([(1, draw())]), lock: unlock.map(bytes_of), version: 0 };
        Self::write(&path, &state)?;
        Ok(Self::of(path, state))
    }

    /// Opens the folder's vault, and takes away what a crash left of one that was to replace it.
    ///
    /// # Errors
    /// It is locked and no key or another one was given; it is missing or damaged.
    pub fn open(folder: &Path, unlock: Option<&UnlockKey>) -> Result<Self, VaultError> {
        let (path, bytes) = load(folder)?;
        // A crash while the keys were written may have left them there as they are.
        Os.remove(&files::beside(&path)).map_err(|e| failed("remove", &files::beside(&path), e))?;
        let (header, body) = bytes.split_at(HEADER.min(bytes.len()));
        let (keys, lock) = if kind(&path, &bytes)? == SEALED {
            let lock = bytes_of(unlock.ok_or(VaultError::Locked)?);
            let keys =
                shoal_identity::open(&lock, header, body).map_err(|_| VaultError::WrongKey)?;
            (keys, Some(lock))
        } else {
            let (sum, keys) = body.split_at_checked(4).ok_or_else(|| damaged(&path, "cut off"))?;
            if crc32fast::hash(keys).to_le_bytes() != sum {
                return Err(damaged(&path, "the checksum is another"));
            }
            (Zeroizing::new(keys.to_vec()), None)
        };
        let (version, keys) = parse(&keys).ok_or_else(|| damaged(&path, "not a list of keys"))?;
        Ok(Self::of(path, State { keys, lock, version }))
    }

    /// Opens the folder's vault, or makes one that is not locked.
    ///
    /// # Errors
    /// As [`Vault::open`] and [`Vault::create`].
    pub fn open_or_create(folder: &Path) -> Result<Self, VaultError> {
        match Self::open(folder, None) {
            Err(VaultError::Missing { .. }) => Self::create(folder, None),
            other => other,
        }
    }

    fn of(path: PathBuf, state: State) -> Self {
        Self(Arc::new(Inner { path, state: RwLock::new(state), files: Mutex::default() }))
    }

    /// Seals bytes for the place that `context` names.
    ///
    /// * `context` - must be given again to open it; no two places may share one.
    #[must_use]
    pub fn seal(&self, context: &str, plain: &[u8]) -> Vec<u8> {
        let state = self.0.state.read();
        let (id, key) = state.keys.last_key_value().expect("a vault has a key");
        let mut record = vec![RECORD];
        record.extend(id.to_le_bytes());
        let sealed = seal(key, rand::random(), &bound(context, &record), plain);
        record.extend(sealed);
        record
    }

    /// Opens what [`Vault::seal`] gave.
    ///
    /// # Errors
    /// It was changed, belongs to another place, or this vault never sealed it.
    pub fn unseal(&self, context: &str, record: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        match record.first() {
            Some(&RECORD) => {}
            Some(&version) => return Err(VaultError::RecordVersion(version)),
            None => return Err(VaultError::Unsealable),
        }
        let (header, sealed) =
            record.split_at_checked(RECORD_HEADER).ok_or(VaultError::Unsealable)?;
        let id = u32::from_le_bytes(header[1..].try_into().expect("four bytes make a word"));
        let state = self.0.state.read();
        let key = state.keys.get(&id).ok_or(VaultError::Unsealable)?;
        shoal_identity::open(key, &bound(context, header), sealed)
            .map_err(|_| VaultError::Unsealable)
    }

    /// The newest data key and its id, for what is sealed as a stream.
    pub(crate) fn newest(&self) -> (u32, Bytes32) {
        let state = self.0.state.read();
        let (id, key) = state.keys.last_key_value().expect("a vault has a key");
        (*id, key.clone())
    }

    /// The data key of that id.
    pub(crate) fn key(&self, id: u32) -> Option<Bytes32> {
        self.0.state.read().keys.get(&id).cloned()
    }

    /// Whether a cluster object of that version wants another lock than this vault has.
    #[must_use]
    pub fn is_stale(&self, unlock: Option<&UnlockKey>, version: u64) -> bool {
        let state = self.0.state.read();
        version > state.version && state.lock != unlock.map(bytes_of)
    }

    /// Locks the vault by another key, or not at all, and seals by a new data key from now on.
    ///
    /// * `version` - of the cluster object that says so.
    ///
    /// # Errors
    /// The disk refused; all is as before then.
    pub fn relock(&self, unlock: Option<&UnlockKey>, version: u64) -> Result<(), VaultError> {
        let mut state = self.0.state.write();
        let newest = *state.keys.last_key_value().expect("a vault has a key").0;
        let lock = unlock.map(bytes_of);
        let mut next = State { keys: state.keys.clone(), lock, version };
        next.keys.insert(newest + 1, draw());
        Self::write(&self.0.path, &next)?;
        *state = next;
        Ok(())
    }

    /// Whether records may still be sealed under an older data key than the newest.
    #[must_use]
    pub fn has_old_keys(&self) -> bool {
        self.0.state.read().keys.len() > 1
    }

    /// Forgets all data keys but the one of that id and newer ones: nothing is sealed under them
    /// any more.
    ///
    /// # Errors
    /// The disk refused; all is as before then.
    pub fn retire(&self, before: u32) -> Result<(), VaultError> {
        let mut state = self.0.state.write();
        let mut next = state.clone();
        next.keys.retain(|id, _| *id >= before);
        if next.keys.is_empty() || next.keys.len() == state.keys.len() {
            return Ok(());
        }
        Self::write(&self.0.path, &next)?;
        *state = next;
        Ok(())
    }

    /// Writes a file outside of the Raft folder, sealed, and keeps it sealed under the newest key.
    ///
    /// # Errors
    /// The disk refused; the old file is there then.
    pub fn write_file(&self, path: &Path, context: &str, plain: &[u8]) -> Result<(), VaultError> {
        let mut files = self.0.files.lock();
        files::replace(&Os, path, &self.seal(context, plain))
            .map_err(|e| failed("write", path, e))?;
        files.insert(path.into(), context.into());
        Ok(())
    }

    /// Reads what [`Vault::write_file`] wrote, and keeps it sealed under the newest key.
    ///
    /// # Errors
    /// It is not there, or not this vault's.
    pub fn read_file(&self, path: &Path, context: &str) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let mut files = self.0.files.lock();
        let bytes = files::read(path).map_err(|e| failed("read", path, e))?;
        let bytes = bytes.ok_or_else(|| VaultError::Missing { path: path.into() })?;
        let plain = self.unseal(context, &bytes)?;
        files.insert(path.into(), context.into());
        Ok(plain)
    }

    /// The file is not this vault's any more.
    pub fn forget_file(&self, path: &Path) {
        self.0.files.lock().remove(path);
    }

    /// Seals the files of [`Vault::write_file`] under the newest key.
    ///
    /// # Errors
    /// The disk refused; some may be sealed under an older key.
    pub(crate) fn reseal_files(&self) -> Result<(), VaultError> {
        let files = self.0.files.lock();
        for (path, context) in files.iter() {
            let Some(bytes) = files::read(path).map_err(|e| failed("read", path, e))? else {
                continue;
            };
            let plain = self.unseal(context, &bytes)?;
            files::replace(&Os, path, &self.seal(context, &plain))
                .map_err(|e| failed("write", path, e))?;
        }
        Ok(())
    }

    fn write(path: &Path, state: &State) -> Result<(), VaultError> {
        Self::write_on(&Os, path, state).map_err(|e| failed("write", path, e))
    }

    fn write_on<D: Disk>(disk: &D, path: &Path, state: &State) -> io::Result<()> {
        let mut keys = Zeroizing::new(Vec::with_capacity(8 + state.keys.len() * 36));
        keys.extend(state.version.to_le_bytes());
        for (id, key) in &state.keys {
            keys.extend(id.to_le_bytes());
            keys.extend(&key[..]);
        }
        let mut bytes = Zeroizing::new(MAGIC.to_vec());
        bytes.extend(VERSION.to_le_bytes());
        if let Some(lock) = &state.lock {
            bytes.push(SEALED);
            let sealed = seal(lock, rand::random(), &bytes, &keys);
            bytes.extend(sealed);
        } else {
            bytes.push(PLAIN);
            bytes.extend(crc32fast::hash(&keys).to_le_bytes());
            bytes.extend(&keys[..]);
        }
        files::replace(disk, path, &bytes)
    }
}

fn load(folder: &Path) -> Result<(PathBuf, Vec<u8>), VaultError> {
    let path = folder.join(FILE);
    match files::read(&path).map_err(|e| failed("read", &path, e))? {
        Some(bytes) => Ok((path, bytes)),
        None => Err(VaultError::Missing { path }),
    }
}

fn kind(path: &Path, bytes: &[u8]) -> Result<u8, VaultError> {
    if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
        return Err(damaged(path, "not a manager's keys"));
    }
    let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes make a word"));
    match (version, bytes[12]) {
        (VERSION, kind @ (PLAIN | SEALED)) => Ok(kind),
        (VERSION, _) => Err(damaged(path, "neither locked nor open")),
        _ => Err(VaultError::Version { path: path.into(), version }),
    }
}

fn parse(bytes: &[u8]) -> Option<(u64, BTreeMap<u32, Bytes32>)> {
    let (version, keys) = bytes.split_first_chunk()?;
    let (keys, rest) = keys.as_chunks::<36>();
    if keys.is_empty() || !rest.is_empty() {
        return None;
    }
    let key = |row: &[u8; 36]| {
        let (id, key) = row.split_at(4);
        let id = u32::from_le_bytes(id.try_into().ok()?);
        Some((id, Zeroizing::new(key.try_into().ok()?)))
    };
    let keys = keys.iter().map(key).collect::<Option<_>>()?;
    Some((u64::from_le_bytes(*version), keys))
}

/// The associated data of a record.
fn bound(context: &str, header: &[u8]) -> Vec<u8> {
    [header, context.as_bytes()].concat()
}

fn bytes_of(unlock: &UnlockKey) -> Bytes32 {
    Zeroizing::new(*unlock.as_bytes())
}

fn draw() -> Bytes32 {
    Zeroizing::new(rand::random())
}

fn damaged(path: &Path, reason: &'static str) -> VaultError {
    VaultError::Damaged { path: path.into(), reason }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> VaultError {
    VaultError::Io { what, path: path.into(), source }
}

#[cfg(test)]
mod tests;
