//! What the daemon remembers of its membership: `node.json` in the state directory.
//!
//! Written before a membership is asked for and again when it is had, so that a daemon which was
//! killed in between goes on where it was. The directory is locked for the daemon's life.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The form of the state directory; 0, which had no number, was that of 0.1's first builds.
pub const FORMAT: u32 = 1;

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
    /// It has a manager's state from a backup, and waits for `shoal init --force-new-cluster`.
    Restored,
    /// It is a member no more, and what it kept is being removed.
    Leaving,
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

/// Whether tasks may run here from the start, in the words of the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// As usual.
    #[default]
    Active,
    /// No new ones.
    Pause,
    /// None.
    Drain,
}

/// A token that lets a node in. It is a secret and does not show itself.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Token(none)" } else { "Token(…)" })
    }
}

/// A membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// How far it is.
    pub phase: Phase,
    /// 25 characters, made from this node's first key.
    pub node_id: String,
    /// Manager or worker: as what it runs. Its certificate may be ahead for a moment.
    pub role: Role,
    /// Where a manager's gRPC server listens.
    pub listen_addr: SocketAddr,
    /// Address or interface, and maybe a port, that was to be listened on; empty leaves it to the
    /// daemon's configuration.
    #[serde(default)]
    pub listen_wish: String,
    /// `host:port` at which others reach this node.
    pub advertise_addr: String,
    /// Address or interface that was to be advertised; empty leaves the choice to the daemon.
    #[serde(default)]
    pub advertise_wish: String,
    /// Address that carries packets between nodes.
    pub data_path_addr: IpAddr,
    /// Address or interface that was to carry them; empty means the advertised address.
    #[serde(default)]
    pub data_path_wish: String,
    /// VXLAN's UDP port, the same on all nodes.
    pub data_path_port: u16,
    /// What the node began with.
    #[serde(default)]
    pub availability: Availability,
    /// Empty until known.
    #[serde(default)]
    pub cluster_id: String,
    /// 0 for a worker and until known.
    #[serde(default)]
    pub raft_id: u64,
    /// `host:port` of managers to ask, as they were given to `shoal join`.
    #[serde(default)]
    pub managers: Vec<String>,
    /// The same as the cluster named them when it let this node in.
    #[serde(default)]
    pub heard: Vec<String>,
    /// Until it is let in.
    #[serde(default)]
    pub token: Token,
}

impl Record {
    /// Every manager's address that the node was told.
    pub fn known(&self) -> Vec<String> {
        let mut known = self.managers.clone();
        known.extend(self.heard.iter().filter(|addr| !self.managers.contains(addr)).cloned());
        known
    }
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
    /// Somebody removed the record and nothing else.
    #[error(
        "{left} is left of a membership whose node.json is missing: bring that back from a backup, \
         or remove {dir} to start anew"
    )]
    Remains {
        /// What is there.
        left: PathBuf,
        /// The directory.
        dir: PathBuf,
    },
    /// Another release wrote it.
    #[error(
        "the state directory {dir} has format {found}, and this shoal {release} reads format \
         {FORMAT}: run the release that wrote it, or remove {dir} to start anew",
        release = env!("CARGO_PKG_VERSION")
    )]
    Format {
        /// The directory.
        dir: PathBuf,
        /// What it has.
        found: u64,
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
    /// The file cannot be read, is damaged or is of another release.
    pub fn load(&self) -> Result<Option<Record>, StateError> {
        let path = self.path.join(RECORD);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { what: "read", path, source }),
        };
        let damaged = |source| StateError::Damaged { path, dir: self.path.clone(), source };
        // The number first: another format need not look like ours.
        let value: serde_json::Value = match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            Err(source) => return Err(damaged(source)),
        };
        let found = value.get("format").map_or(Some(0), serde_json::Value::as_u64);
        match found {
            Some(found) if value.is_object() && found != u64::from(FORMAT) => {
                Err(StateError::Format { dir: self.path.clone(), found })
            }
            _ => serde_json::from_value(value).map(Some).map_err(damaged),
        }
    }

    /// Replaces the file at once, so that a crash leaves the old or the new one.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self, record: &Record) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        replace(&self.path.join(RECORD), &text)
    }

    /// Forgets the membership.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn forget(&self) -> Result<(), StateError> {
        remove(&self.path.join(RECORD))
    }

    /// Removes what a member keeps here, its record last: it says [`Phase::Leaving`] by then, and a
    /// start after a crash goes on. Only what is ours is touched.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn clear(&self) -> Result<(), StateError> {
        for name in MEMBERS {
            remove(&self.path.join(name))?;
        }
        self.forget()
    }

    /// Refuses where a membership is left that no record tells of: it may be worth something.
    ///
    /// # Errors
    /// What is there.
    pub fn ensure_empty(&self) -> Result<(), StateError> {
        match MEMBERS.iter().map(|name| self.path.join(name)).find(|path| path.exists()) {
            Some(left) => Err(StateError::Remains { left, dir: self.path.clone() }),
            None => Ok(()),
        }
    }
}

/// What a membership leaves in the state directory: beside the record certificates, a manager's
/// state, the managers that the agent knows.
const MEMBERS: [&str; 3] = ["certificates", "raft", "managers.json"];

/// Writes a file at once and for nobody else to read: a crash leaves the old or the new one.
///
/// # Errors
/// The disk refuses.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let folder = path.parent().expect("a file of ours lies in a folder of ours");
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| StateError::Io { what: "write", path: path.to_owned(), source })
}

/// Removes a file or a folder with all that is in it; one that is not there is removed.
///
/// # Errors
/// The disk refuses.
pub fn remove(path: &Path) -> Result<(), StateError> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(StateError::Io { what: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            format: FORMAT,
            phase: Phase::Joining,
            node_id: "n".repeat(25),
            role: Role::Manager,
            listen_addr: "0.0.0.0:2377".parse().unwrap(),
            listen_wish: String::new(),
            advertise_addr: "10.0.0.1:2377".into(),
            advertise_wish: "eth0".into(),
            data_path_addr: "10.0.0.1".parse().unwrap(),
            data_path_wish: String::new(),
            data_path_port: 4789,
            availability: Availability::Drain,
            cluster_id: String::new(),
            raft_id: 0,
            managers: vec!["10.0.0.2:2377".into()],
            heard: Vec::new(),
            token: Token("SWMTKN-1-a-b".into()),
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
    fn what_is_cleared_is_a_members_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.save(&record()).unwrap();
        for folder in ["certificates", "raft/deep", "mine"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("managers.json"), "[]").unwrap();
        let refused = state.ensure_empty().unwrap_err().to_string();
        assert!(refused.contains("whose node.json is missing"), "{refused}");
        state.clear().unwrap();
        state.ensure_empty().unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["lock", "mine"]);
        state.clear().unwrap();
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
        for text in ["{", "[]", "{\"format\": 1}", "{\"format\": \"x\"}"] {
            std::fs::write(dir.path().join(RECORD), text).unwrap();
            let error = state.load().unwrap_err().to_string();
            assert!(error.contains("node.json is damaged"), "{text}: {error}");
        }
    }

    #[test]
    fn another_releases_state_is_refused_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for (text, found) in [("{\"phase\": \"active\"}", "format 0"), ("{\"format\": 7}", "7")] {
            std::fs::write(dir.path().join(RECORD), text).unwrap();
            let error = state.load().unwrap_err().to_string();
            assert!(error.contains(found) && error.contains("reads format 1"), "{error}");
        }
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let shown = format!("{:?}", record());
        assert!(!shown.contains("SWMTKN") && shown.contains("Token(…)"), "{shown}");
    }

    #[test]
    fn nobody_else_reads_a_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"text").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, std::fs::read(&path).unwrap()), (0o600, b"text".to_vec()));
    }
}
