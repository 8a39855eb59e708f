//! Backups written and read in memory: whole ones, and every way in which one can be none.

use shoal_api::{Batch, Cluster, Service};

use super::*;
use crate::types::LogId;

fn key() -> BackupKey {
    BackupKey::from_bytes([3; 32])
}

fn source(services: u32) -> Source {
    let mut store = Store::default();
    let cluster = Cluster { id: "c1".into(), ..Cluster::default() };
    let services = (0..services).map(|number| {
        let id = format!("service{number:08}");
        let spec = shoal_api::ServiceSpec { name: id.clone(), ..Default::default() };
        Service { id, number: number + 1, spec: Some(spec), ..Service::default() }.put()
    });
    let changes = std::iter::once(cluster.put()).chain(services).collect();
    store.apply(7, &Batch { changes, now_ns: 1 }).unwrap();
    let last_log_id = Some(LogId { leader_id: 2u64.into(), index: 9 });
    Source {
        identity: Identity { node_id: "n1".into(), raft_id: 4 },
        files: NodeFiles {
            chain_pem: "chain".into(),
            key_pem: Zeroizing::new("the private key".into()),
            roots_pem: "roots".into(),
            record: b"record".to_vec(),
        },
        created_at_ns: 5,
        meta: SnapshotMeta { last_log_id, ..SnapshotMeta::default() },
        store,
    }
}

fn bytes(services: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let keep = |piece: Vec<u8>| {
        bytes.extend(piece);
        true
    };
    write(source(services), &key(), keep).unwrap();
    bytes
}

#[test]
fn a_backup_brings_back_who_and_what_it_was_made_of() {
    let whole = bytes(30_000);
    assert!(whole.len() > PIECE, "more than one piece: {}", whole.len());
    assert!(!whole.windows(11).any(|window| window == b"private key"));
    let restored = open(whole.as_slice(), &key()).unwrap();
    assert_eq!((restored.cluster_id(), restored.node_id(), restored.index()), ("c1", "n1", 9));
    assert_eq!((restored.created_at_ns(), restored.release()), (5, env!("CARGO_PKG_VERSION")));
    assert!(restored.files() == source(1).files);
    assert_eq!(restored.store.snapshot(), source(30_000).store.snapshot());
}

#[test]
fn a_damaged_or_cut_off_backup_is_refused_wherever_the_damage_is() {
    let good = bytes(2);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        assert!(open(bad.as_slice(), &key()).is_err(), "byte {at}");
        assert!(open(&good[..at], &key()).is_err(), "cut to {at}");
    }
    let longer = [good.as_slice(), b"x"].concat();
    assert!(open(longer.as_slice(), &key()).is_err());
}

#[test]
fn a_foreign_file_another_key_and_a_newer_version_are_named() {
    let good = bytes(2);
    let text = |bytes: &[u8], key: &BackupKey| open(bytes, key).err().unwrap().to_string();
    for foreign in [&b""[..], b"PK\x03\x04 and some more", b"SHOALBA"] {
        assert_eq!(text(foreign, &key()), "this is not a backup of Shoal");
    }
    let other = BackupKey::from_bytes([4; 32]);
    assert_eq!(
        text(&good, &other),
        "this backup does not open: the key is another one's, or the file is damaged"
    );
    let mut newer = good.clone();
    newer[8] = 2;
    assert_eq!(text(&newer, &key()), "this backup is of version 2, this release reads 1");
    let first = HEADER + shoal_identity::stream::HEADER + PIECE + shoal_identity::seal::TAG;
    assert_eq!(
        text(&bytes(30_000)[..first], &key()),
        "this backup is not complete: its end is missing"
    );
}

/// What a backup of these parts is read as.
fn read(manifest: &Manifest, snapshot: &[u8]) -> String {
    let manifest = manifest.encode_to_vec();
    let length = u32::try_from(manifest.len()).unwrap().to_le_bytes();
    let bytes = [&length[..], &manifest, snapshot].concat();
    parse(bytes).err().map(|refused| refused.to_string()).unwrap_or_default()
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let Source { meta, store, .. } = source(2);
    let snapshot = snapshot::encode(&meta, &store).unwrap();
    let manifest = Manifest {
        cluster_id: "c1".into(),
        node_id: "n1".into(),
        raft_id: 4,
        index: 9,
        ..Manifest::default()
    };
    assert_eq!(read(&manifest, &snapshot), "");
    let refusal = "this backup is damaged: its parts do not belong together";
    let others = [
        Manifest { index: 8, ..manifest.clone() },
        Manifest { index: 0, ..manifest.clone() },
        Manifest { cluster_id: "c2".into(), ..manifest.clone() },
        Manifest { node_id: String::new(), ..manifest.clone() },
        Manifest { raft_id: 0, ..manifest },
    ];
    for other in others {
        assert_eq!(read(&other, &snapshot), refusal, "{}", other.index);
    }
}

#[test]
fn no_more_of_a_file_is_held_than_a_backup_may_be_long() {
    let whole = bytes(60_000);
    let limit = whole.len() / 2;
    let refused = open_within(whole.as_slice(), &key(), limit).err().unwrap();
    assert_eq!(refused.to_string(), "this backup is too large: it holds more than 1024 MiB");
    assert!(open_within(whole.as_slice(), &key(), whole.len()).is_ok());
}

#[test]
fn a_restored_folder_is_whole_sealed_and_never_over_another() {
    let folder = tempfile::tempdir().unwrap();
    let raft = folder.path().join("state/raft");
    let restored = open(bytes(3).as_slice(), &key()).unwrap();
    // What an earlier try left behind does not matter.
    fs::create_dir_all(files::beside(&raft)).unwrap();
    fs::write(files::beside(&raft).join("vault"), "half a vault").unwrap();
    let vault = restored.write(&raft).unwrap();
    let names = fs::read_dir(folder.path().join("state")).unwrap().count();
    assert_eq!(names, 1, "nothing is left beside it");
    let owner = Identity { node_id: "n1".into(), raft_id: 4 };
    assert_eq!(identity::load(&raft).unwrap(), Some(owner.clone()));
    let log = LogStore::read(&raft.join(LOG), &vault, &owner).unwrap();
    assert_eq!(log.purged.map(|purged| purged.index), Some(9));
    let (_, store) = snapshot::decode(&snapshot::load(&raft, &vault).unwrap().unwrap()).unwrap();
    assert_eq!(store.snapshot(), source(3).store.snapshot());
    let again = restored.write(&raft).unwrap_err();
    assert!(matches!(again, ManagerError::InUse { .. }), "{again}");
}
