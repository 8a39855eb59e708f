//! What the daemon remembers of its membership: `node.json` in the state directory.
//!
//! Written before a membership is asked for and again when it is had, so that a daemon which was
//! killed in between goes on where it was. The directory is locked for the daemon's life.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How far a membership is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// This node is about to be its cluster's first manager.
    Founding,
    /// It asked to join and has no answer yet, or has one and is being let in.
    Joining,
    /// It is a member.
    Active,
}

/// Manager or worker, as the file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    Worker,
    /// Holds the cluster's state too.
    Manager,
}

/// A membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How far it is.
    pub phase: Phase,
    /// 25 characters, made for this membership.
    pub node_id: String,
    /// Manager or worker.
    pub role: Role,
    /// `host:port` at which others reach this node.
    pub advertise_addr: String,
    /// Address that carries packets between nodes.
    pub data_path_addr: std::net::IpAddr,
    /// Empty until known.
    #[serde(default)]
    pub cluster_id: String,
    /// 0 for a worker and until known.
    #[serde(default)]
    pub raft_id: u64,
    /// `host:port` of managers to ask.
    #[serde(default)]
    pub managers: Vec<String>,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon runs on it.
    #[error(
        "the state directory {dir} is in use by another shoal daemon: stop it or set --state-dir"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk refuses.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// `read`, `write`, …
        what: &'static str,
        /// What.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error(
        "{path} is damaged ({source}): bring it back from a backup, or remove {dir} to start anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its directory.
        dir: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The locked directory.
pub struct StateDir {
    path: PathBuf,
    /// Holds the lock until the process ends, however it ends.
    _lock: File,
}

const RECORD: &str = "node.json";
const LOCK: &str = "lock";

impl StateDir {
    /// Makes the directory where it is missing and locks it.
    ///
    /// # Errors
    /// It is in use or cannot be written.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let error = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { what, path, source }
        };
        // The tasks' output and the Raft log are nobody else's to read.
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(error("make", path))?;
        // Relative paths would break when tasks are started elsewhere.
        let path = path.canonicalize().map_err(error("find", path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(error("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse { dir: path }),
            Err(TryLockError::Error(source)) => Err(error("lock", &lock_path)(source)),
        }
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The membership, if there is one.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn load(&self) -> Result<Option<Record>, StateError> {
        let path = self.path.join(RECORD);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| StateError::Damaged { path, dir: self.path.clone(), source }),
            Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { what: "read", path, source }),
        }
    }

    /// Replaces the file at once, so that a crash leaves the old or the new one.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self, record: &Record) -> Result<(), StateError> {
        let path = self.path.join(RECORD);
        let new = self.path.join("node.json.new");
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| StateError::Io { what: "write", path: path.clone(), source })
    }

    /// Forgets the membership.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn forget(&self) -> Result<(), StateError> {
        let path = self.path.join(RECORD);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(StateError::Io { what: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            phase: Phase::Joining,
            node_id: "n".repeat(25),
            role: Role::Manager,
            advertise_addr: "10.0.0.1:2377".into(),
            data_path_addr: "10.0.0.1".parse().unwrap(),
            cluster_id: String::new(),
            raft_id: 0,
            managers: vec!["10.0.0.2:2377".into()],
        }
    }

    #[test]
    fn a_record_is_kept_replaced_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("new")).unwrap();
        assert_eq!(state.load().unwrap(), None);
        state.save(&record()).unwrap();
        let active = Record { phase: Phase::Active, raft_id: 3, ..record() };
        state.save(&active).unwrap();
        assert_eq!(state.load().unwrap(), Some(active));
        state.forget().unwrap();
        state.forget().unwrap();
        assert_eq!(state.load().unwrap(), None);
    }

    #[test]
    fn a_second_daemon_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let refused = StateDir::open(dir.path()).err().map(|error| error.to_string()).unwrap();
        assert!(refused.contains("in use by another shoal daemon"), "{refused}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_record_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join(RECORD), "{").unwrap();
        let error = state.load().unwrap_err().to_string();
        assert!(error.contains("node.json is damaged"), "{error}");
    }
}
