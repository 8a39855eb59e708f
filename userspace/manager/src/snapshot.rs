//! The snapshot: all objects at one index, and what Raft must know about it.
//!
//! As bytes it goes to slow followers and into backups. On the disk the same bytes are sealed, in
//! pieces, and replaced whole: at every moment one whole snapshot is there. The checksum tells
//! damaged bytes from good ones before anything of them is used.
//!
//! Bytes, little endian: magic, version `u32`, CRC-32 of the rest `u32`, length of the head `u32`,
//! head (postcard `SnapshotMeta`), objects (protobuf `Snapshot`). File: magic, version `u32`, the data
//! key's id `u32`, and the stream that `shoal_identity::stream` seals with these as context.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use prost::Message;
use shoal_api::{Cluster, Network, Node, Service, Task};
use shoal_control::Store;
use shoal_identity::{StreamError, StreamOpener, StreamSealer};

use crate::error::ManagerError;
use crate::files::{self, Disk, Os};
use crate::types::{SnapshotMeta, invalid};
use crate::vault::Vault;

pub mod older;

/// Name in the state directory.
pub const FILE: &str = "snapshot";
const MAGIC: &[u8; 8] = b"SHOALSNP";
/// Version of the bytes.
pub const VERSION: u32 = 1;
/// Magic, version, checksum and the head's length.
const FIXED: usize = 20;
const FILE_MAGIC: &[u8; 8] = b"SHOALSNF";
/// Version of the file around them.
const FILE_VERSION: u32 = 1;
/// Magic, version and the data key's id.
const FILE_HEADER: usize = 16;
/// Longest bytes that are taken from elsewhere, all of them into memory: a store of a million tasks
/// is smaller, and neither a peer nor a file may fill the memory.
pub const LARGEST: usize = 1 << 30;
/// Read and sealed at once.
const PIECE: usize = 1 << 20;

/// An encoding or file of another release.
#[derive(Debug, thiserror::Error)]
#[error("of version {found}, this release reads {known}")]
pub struct OtherVersion {
    found: u32,
    known: u32,
}

/// Writes a snapshot as bytes.
///
/// # Errors
/// The head cannot be encoded.
pub fn encode(meta: &SnapshotMeta, store: &Store) -> io::Result<Vec<u8>> {
    let head = postcard::to_stdvec(meta).map_err(io::Error::other)?;
    let head_length = u32::try_from(head.len()).map_err(io::Error::other)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(head_length.to_le_bytes());
    bytes.extend(head);
    // One object after the other is the message with all of them, and needs no second copy.
    shoal_api::Snapshot { index: store.index(), objects: Vec::new() }.encode(&mut bytes)?;
    let cluster = store.cluster().map(|object| Cluster::clone(object).into());
    let nodes = store.nodes().map(|object| Node::clone(object).into());
    let services = store.services().map(|object| Service::clone(object).into());
    let tasks = store.tasks().map(|object| Task::clone(object).into());
    let networks = store.networks().map(|object| Network::clone(object).into());
    for object in cluster.into_iter().chain(nodes).chain(services).chain(tasks).chain(networks) {
        shoal_api::Snapshot { index: 0, objects: vec![object] }.encode(&mut bytes)?;
    }
    let sum = crc32fast::hash(&bytes[16..]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// Not a snapshot, of another version, or damaged.
pub fn decode(bytes: &[u8]) -> io::Result<(SnapshotMeta, Store)> {
    let damaged = || invalid("the snapshot is damaged");
    if bytes.len() < FIXED || !bytes.starts_with(MAGIC) {
        return Err(invalid("not a snapshot"));
    }
    let word = |at: usize| {
        let word = bytes[at..at + 4].try_into().expect("four bytes make a word");
        u32::from_le_bytes(word)
    };
    if word(8) != VERSION {
        return Err(invalid(OtherVersion { found: word(8), known: VERSION }));
    }
    if crc32fast::hash(&bytes[16..]) != word(12) {
        return Err(damaged());
    }
    let head_length = usize::try_from(word(16)).map_err(invalid)?;
    let (head, objects) = bytes[FIXED..].split_at_checked(head_length).ok_or_else(damaged)?;
    let meta = postcard::from_bytes(head).map_err(invalid)?;
    let objects = shoal_api::Snapshot::decode(objects).map_err(invalid)?;
    Ok((meta, Store::restore(objects)))
}

/// Replaces the snapshot in `folder`.
///
/// # Errors
/// The disk refused; the old snapshot is untouched then.
pub fn save(folder: &Path, vault: &Vault, bytes: &[u8]) -> io::Result<()> {
    save_as(&Os, &folder.join(FILE), vault, bytes)
}

/// Replaces the file at `path` by a sealed snapshot.
///
/// # Errors
/// As [`save`].
pub fn save_as<D: Disk>(disk: &D, path: &Path, vault: &Vault, bytes: &[u8]) -> io::Result<()> {
    let (id, key) = vault.newest();
    let mut header = FILE_MAGIC.to_vec();
    header.extend(FILE_VERSION.to_le_bytes());
    header.extend(id.to_le_bytes());
    files::replace_with(disk, path, |file| {
        let mut out = header.clone();
        let mut sealer = StreamSealer::new(&key, rand::random(), &header, &mut out);
        for piece in bytes.chunks(PIECE) {
            sealer.push(piece, &mut out);
            file.write_all(&out)?;
            out.clear();
        }
        sealer.finish(&mut out);
        file.write_all(&out)
    })
}

/// The bytes of the snapshot in `folder`, if there is one.
///
/// # Errors
/// It cannot be read, is damaged, or not sealed by this vault.
pub fn load(folder: &Path, vault: &Vault) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(folder.join(FILE)) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let mut header = [0; FILE_HEADER];
    let whole = file.read_exact(&mut header);
    if whole.is_err() || !header.starts_with(FILE_MAGIC) {
        return Err(invalid("not a snapshot"));
    }
    let word = |at: usize| {
        let word = header[at..at + 4].try_into().expect("four bytes make a word");
        u32::from_le_bytes(word)
    };
    if word(8) != FILE_VERSION {
        return Err(invalid(OtherVersion { found: word(8), known: FILE_VERSION }));
    }
    let key = vault.key(word(12));
    let key = key.ok_or_else(|| invalid("sealed under a key that this manager does not have"))?;
    let mut opener = StreamOpener::new(&key, &header);
    let (mut sealed, mut bytes) = (vec![0; PIECE], Vec::new());
    loop {
        let read = file.read(&mut sealed)?;
        if read == 0 {
            opener.finish(&mut bytes).map_err(broken)?;
            return Ok(Some(bytes));
        }
        opener.push(&sealed[..read], &mut bytes).map_err(broken)?;
    }
}

fn broken(reason: StreamError) -> io::Error {
    invalid(reason)
}

/// What a failure to read a snapshot means to whoever starts a manager.
pub fn explain(failure: io::Error, path: &Path) -> ManagerError {
    let path = path.into();
    let other = failure.get_ref().and_then(|inner| inner.downcast_ref::<OtherVersion>());
    match other {
        Some(OtherVersion { found, known }) => {
            ManagerError::Version { path, found: *found, known: *known }
        }
        None if failure.kind() == io::ErrorKind::InvalidData => {
            ManagerError::Damaged { path, reason: failure.to_string() }
        }
        None => ManagerError::Io { what: "read", path, source: failure },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use shoal_api::Batch;

    use super::*;
    use crate::types::LogId;

    fn snapshot() -> (SnapshotMeta, Store) {
        let mut store = Store::default();
        let cluster = Cluster { id: "cluster".into(), ..Cluster::default() };
        store.apply(5, &Batch { changes: vec![cluster.put()], now_ns: 1 }).unwrap();
        let last_log_id = Some(LogId { leader_id: 2u64.into(), index: 5 });
        (SnapshotMeta { last_log_id, ..SnapshotMeta::default() }, store)
    }

    #[test]
    fn a_snapshot_survives_the_disk_and_is_not_readable_there() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::create(folder.path(), None).unwrap();
        assert!(load(folder.path(), &vault).unwrap().is_none());
        let (meta, store) = snapshot();
        save(folder.path(), &vault, b"an older one").unwrap();
        save(folder.path(), &vault, &encode(&meta, &store).unwrap()).unwrap();
        let bytes = load(folder.path(), &vault).unwrap().unwrap();
        let (meta_read, store_read) = decode(&bytes).unwrap();
        assert_eq!(meta_read, meta);
        assert_eq!(store_read.snapshot(), store.snapshot());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
        let sealed = fs::read(folder.path().join(FILE)).unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"cluster"), "it is sealed");
        assert!(bytes.windows(7).any(|window| window == b"cluster"));
    }

    #[test]
    fn objects_one_by_one_are_the_message_with_all_of_them() {
        let (meta, store) = snapshot();
        let bytes = encode(&meta, &store).unwrap();
        assert!(bytes.ends_with(&store.snapshot().encode_to_vec()));
    }

    #[test]
    fn a_file_that_is_damaged_cut_off_or_of_another_version_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::create(folder.path(), None).unwrap();
        save(folder.path(), &vault, &[7; 300]).unwrap();
        let path = folder.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert!(load(folder.path(), &vault).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(load(folder.path(), &vault).is_err(), "cut to {at}");
        }
        let mut newer = good;
        newer[8] = 4;
        fs::write(&path, newer).unwrap();
        let newer = explain(load(folder.path(), &vault).unwrap_err(), &path).to_string();
        assert!(newer.ends_with("snapshot is of version 4, this release reads 1"), "{newer}");
    }

    #[test]
    fn a_damaged_snapshot_is_refused_wherever_the_damage_is() {
        let (meta, store) = snapshot();
        let good = encode(&meta, &store).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "cut to {length} bytes");
        }
    }
}
