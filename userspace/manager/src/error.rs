//! Why a manager could not be started or ended.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::vault::VaultError;

/// Why a manager could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The disk refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, …
        what: &'static str,
        /// What was to be read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be. With other managers online the way back is a new node: one
    /// that comes back under its old id without its log could undo what it has acknowledged.
    #[error(
        "{} is damaged: {reason}; if other managers are online, remove all of this node's state \
         and join again, else bring it back from a backup",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not there that was: without it this manager may have forgotten what it has
    /// acknowledged.
    #[error(
        "{} is missing, but this manager has run before; if other managers are online, remove all \
         of this node's state and join again, else bring it back from a backup",
        path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
    },
    /// A file is of another release.
    #[error("{} is of version {found}, this release reads {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that is read here.
        known: u32,
    },
    /// The keys that seal the state cannot be had.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The folder holds another node's state.
    #[error("{} belongs to node {found}, this is node {expected}", folder.display())]
    AnotherNode {
        /// The folder.
        folder: PathBuf,
        /// Whose state it is.
        found: String,
        /// Who wanted it.
        expected: String,
    },
    /// A new manager needs an empty folder.
    #[error("{} holds a manager's state already", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// There is nothing to restart.
    #[error("{} holds no manager's state", folder.display())]
    NoState {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process has the log open.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The log.
        path: PathBuf,
    },
    /// The cluster cannot be founded like this; nothing was left behind.
    #[error("{reason}")]
    Refused {
        /// What is wrong.
        reason: String,
    },
    /// Raft refused or stopped.
    #[error("Raft: {reason}")]
    Raft {
        /// Its own words.
        reason: String,
    },
    /// It took too long.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
}

impl ManagerError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.into(), source }
    }

    pub(crate) fn raft(reason: impl std::fmt::Display) -> Self {
        Self::Raft { reason: reason.to_string() }
    }
}
