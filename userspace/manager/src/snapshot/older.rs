//! Snapshots that stay beside the newest, as many as the cluster's spec says.
//!
//! They are for whoever looks back, by hand: nothing here or elsewhere reads one. Each is the file
//! that was the newest before, under the index of its last entry. They are not sealed anew when a
//! data key is retired but taken away, for they hold what that key was to protect.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shoal_control::Store;

use super::FILE;
use crate::files::{Disk, Os};

/// How many the cluster's spec wants; `None` while the cluster is not known.
pub fn wanted(store: &Store) -> Option<usize> {
    let spec = store.cluster()?.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.raft?.max_snapshots).unwrap_or(0);
    Some(usize::try_from(wanted).unwrap_or(usize::MAX))
}

/// The newest snapshot stays as an older one when another takes its place.
///
/// * `index` - of the last entry that it holds.
///
/// # Errors
/// The disk refused.
pub fn keep(folder: &Path, index: u64) -> io::Result<()> {
    match fs::hard_link(folder.join(FILE), folder.join(format!("{FILE}.{index}"))) {
        // A try to replace it failed after this.
        Err(there) if there.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Takes away all but the newest `count` of them, for good.
///
/// # Errors
/// The disk refused; some may be gone.
pub fn prune(folder: &Path, count: usize) -> io::Result<()> {
    let mut older = list(folder)?;
    let gone = older.len().saturating_sub(count);
    for (_, path) in older.drain(..gone) {
        Os.remove(&path)?;
    }
    if gone > 0 { Os.sync_folder(folder) } else { Ok(()) }
}

/// Their indexes and places, oldest first.
fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut older = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix(FILE)?.strip_prefix('.'));
        if let Some(Ok(index)) = index.map(str::parse) {
            older.push((index, entry.path()));
        }
    }
    older.sort_unstable();
    Ok(older)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexes(folder: &Path) -> Vec<u64> {
        list(folder).unwrap().into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn the_newest_of_the_older_ones_stay_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in ["snapshot", "snapshot.new", "snapshots.1", "vault", "snapshot.x"] {
            fs::write(folder.join(name), name).unwrap();
        }
        for index in [100, 9, 20] {
            keep(folder, index).unwrap();
            keep(folder, index).unwrap();
        }
        assert_eq!(indexes(folder), [9, 20, 100]);
        prune(folder, 3).unwrap();
        assert_eq!(indexes(folder), [9, 20, 100]);
        prune(folder, 2).unwrap();
        assert_eq!(indexes(folder), [20, 100]);
        prune(folder, 0).unwrap();
        assert_eq!(fs::read_dir(folder).unwrap().count(), 5);
    }
}
