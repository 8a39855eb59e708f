//! Backup files, and the snapshots in them.

use shoal_identity::{BackupKey, StreamSealer};
use shoal_manager::{backup, fuzzing};

use crate::choice;

/// Magic and version, which the seal binds.
const HEADER: &[u8] = b"SHOALBAK\x01\0\0\0";

/// A file is refused, or says of which node and cluster it is.
///
/// The first byte chooses whether the rest is the file, what is sealed in it, or the snapshot in
/// that, whose checksum is put right: a search by chance would never get past seal and sum.
pub fn run(input: &[u8]) {
    let (kind, bytes) = choice(input);
    match kind % 3 {
        0 => check(bytes),
        1 => check(&sealed(bytes)),
        _ => {
            let mut bytes = bytes.to_vec();
            if let Some((head, rest)) = bytes.split_at_mut_checked(16) {
                head[12..].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
            }
            fuzzing::snapshot(&bytes);
            // Of cluster "c" and node "n", at index 9.
            let manifest = [10, 1, b'c', 18, 1, b'n', 32, 9];
            let length = u32::try_from(manifest.len()).unwrap().to_le_bytes();
            check(&sealed(&[&length, manifest.as_slice(), &bytes].concat()));
        }
    }
}

fn check(file: &[u8]) {
    if let Ok(read) = backup::open(file, &key()) {
        assert!(!read.node_id().is_empty() && !read.cluster_id().is_empty());
    }
}

fn key() -> BackupKey {
    BackupKey::from_bytes([1; 32])
}

fn sealed(content: &[u8]) -> Vec<u8> {
    let mut file = HEADER.to_vec();
    let mut sealer = StreamSealer::new(key().as_bytes(), [2; 24], HEADER, &mut file);
    sealer.push(content, &mut file);
    sealer.finish(&mut file);
    file
}

pub fn seeds() -> Vec<Vec<u8>> {
    let snapshot = fuzzing::a_snapshot("c");
    vec![
        [&[0], sealed(b"").as_slice()].concat(),
        [&[0], HEADER].concat(),
        vec![1, 0, 0, 0, 0],
        [&[2], snapshot.as_slice()].concat(),
    ]
}
