//! The snapshot file: all objects at one index, and what Raft must know about it.
//!
//! Written beside the old one, flushed, renamed over it, and the folder flushed: at every moment
//! one whole snapshot is there. The checksum tells a damaged file from a good one before anything
//! of it is used. The bytes that go to a slow follower are the file's own.
//!
//! Layout, little endian: magic, version `u32`, CRC-32 of the rest `u32`, length of the head `u32`,
//! head (postcard `SnapshotMeta`), objects (protobuf `Snapshot`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use prost::Message;
use shoal_control::Store;

use crate::types::{SnapshotMeta, invalid};

/// Name in the state directory.
pub const FILE: &str = "snapshot";
const TEMPORARY: &str = "snapshot.new";
const MAGIC: &[u8; 8] = b"SHOALSNP";
const VERSION: u32 = 1;
/// Magic, version, checksum and the head's length.
const FIXED: usize = 20;

/// Writes a snapshot as bytes.
///
/// # Errors
/// The head cannot be encoded.
pub fn encode(meta: &SnapshotMeta, store: &Store) -> io::Result<Vec<u8>> {
    let head = postcard::to_stdvec(meta).map_err(io::Error::other)?;
    let head_length = u32::try_from(head.len()).map_err(io::Error::other)?;
    let mut rest = head_length.to_le_bytes().to_vec();
    rest.extend(head);
    store.snapshot().encode(&mut rest)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc32fast::hash(&rest).to_le_bytes());
    bytes.extend(rest);
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
        return Err(invalid(format!("snapshot version {} is not known here", word(8))));
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
pub fn save(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(TEMPORARY);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, folder.join(FILE)));
    if let Err(refused) = written {
        // A half-written file would only take up space that is missing already.
        drop(fs::remove_file(&temporary));
        return Err(refused);
    }
    File::open(folder)?.sync_all()
}

/// The bytes of the snapshot in `folder`, if there is one.
///
/// # Errors
/// It cannot be read.
pub fn load(folder: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(folder.join(FILE)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::{Batch, Cluster};

    use super::*;
    use crate::types::LogId;

    fn snapshot() -> (SnapshotMeta, Store) {
        let mut store = Store::default();
        let cluster = Cluster { id: "c".into(), ..Cluster::default() };
        store.apply(5, &Batch { changes: vec![cluster.put()], now_ns: 1 }).unwrap();
        let last_log_id = Some(LogId { leader_id: 2u64.into(), index: 5 });
        (SnapshotMeta { last_log_id, ..SnapshotMeta::default() }, store)
    }

    #[test]
    fn a_snapshot_survives_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).unwrap().is_none());
        let (meta, store) = snapshot();
        save(folder.path(), b"an older one").unwrap();
        save(folder.path(), &encode(&meta, &store).unwrap()).unwrap();
        let (meta_read, store_read) = decode(&load(folder.path()).unwrap().unwrap()).unwrap();
        assert_eq!(meta_read, meta);
        assert_eq!(store_read.snapshot(), store.snapshot());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
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
