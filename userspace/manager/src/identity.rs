//! Who a Raft folder belongs to, so that no manager runs on another's log.
//!
//! One text file, `key=value` per line. It is written last, when everything else of a new manager
//! is on the disk: a folder with it is whole, one without it is nobody's, whatever lies there. Beside
//! it, sealed: what a founder brings, until the cluster has it, and the node of a manager that goes
//! on alone, until the store knows it.

use std::path::{Path, PathBuf};

use shoal_api::JoinRequest;

use crate::ManagerError;
use crate::files::{self, Disk, Os};
use crate::founding::Founding;
use crate::log_store::{self, Beginning, LogStore, OpenError};
use crate::snapshot;
use crate::vault::{Vault, VaultError};

/// Name of the file.
pub const FILE: &str = "manager";
/// Name of the log's file.
pub const LOG: &str = "raft.redb";
const FOUNDER: &str = "founder";
/// Name of the file of a manager that goes on alone.
pub const FORCED: &str = "forced";
/// Version of the folder.
const VERSION: u32 = 1;

/// Whose state it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node_id: String,
    /// Its id in Raft.
    pub raft_id: u64,
}

/// Reads the identity; `None` in a folder that is nobody's.
///
/// # Errors
/// The file cannot be read, is damaged or of another version.
pub fn load(folder: &Path) -> Result<Option<Identity>, ManagerError> {
    let path = folder.join(FILE);
    let bytes = files::read(&path).map_err(|e| ManagerError::io("read", &path, e))?;
    bytes.map(|bytes| parse(path, &bytes)).transpose()
}

fn parse(path: PathBuf, bytes: &[u8]) -> Result<Identity, ManagerError> {
    let text = String::from_utf8_lossy(bytes);
    let field = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(str::to_owned)
    };
    let number = |key: &str| field(key).and_then(|value| value.parse::<u64>().ok());
    match (number("version"), field("node_id"), number("raft_id")) {
        (Some(version), ..) if version != u64::from(VERSION) => {
            let found = u32::try_from(version).unwrap_or(u32::MAX);
            Err(ManagerError::Version { path, found, known: VERSION })
        }
        (Some(_), Some(node_id), Some(raft_id)) if !node_id.is_empty() => {
            Ok(Identity { node_id, raft_id })
        }
        _ => Err(ManagerError::Damaged { path, reason: "not a manager's identity".into() }),
    }
}

/// The file's text.
pub fn text(identity: &Identity) -> String {
    let Identity { node_id, raft_id } = identity;
    format!("version={VERSION}\nnode_id={node_id}\nraft_id={raft_id}\n")
}

/// Makes the folder this manager's own, with an empty log.
///
/// # Errors
/// It is somebody's already, or cannot be written.
pub fn claim(
    folder: &Path,
    vault: &Vault,
    identity: &Identity,
    founding: Option<&Founding>,
) -> Result<(), ManagerError> {
    if load(folder)?.is_some() {
        return Err(ManagerError::InUse { folder: folder.into() });
    }
    disown(folder)?;
    let log = folder.join(LOG);
    let beginning = Beginning { owner: identity.clone(), purged: None, vote: None };
    LogStore::create(&log, vault, &beginning).map_err(|e| explain(e, &log))?;
    if let Some(founding) = founding {
        vault.write_file(&folder.join(FOUNDER), FOUNDER, &founding.encode())?;
    }
    write(&folder.join(FILE), text(identity).as_bytes())
}

/// What the founder brings; `None` for one that joined, or when the cluster has it.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn founding(folder: &Path, vault: &Vault) -> Result<Option<Founding>, ManagerError> {
    sealed(&folder.join(FOUNDER), vault, FOUNDER, Founding::decode)
}

/// The node of a manager that goes on alone and has not said so in the store.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn forced(folder: &Path, vault: &Vault) -> Result<Option<JoinRequest>, ManagerError> {
    sealed(&folder.join(FORCED), vault, FORCED, |bytes| prost::Message::decode(bytes).ok())
}

/// Writes down that this manager goes on alone, in a file that is yet to get its name.
///
/// # Errors
/// The disk refused.
pub fn force(path: &Path, vault: &Vault, node: &JoinRequest) -> Result<(), ManagerError> {
    vault.write_file(path, FORCED, &prost::Message::encode_to_vec(node))?;
    vault.forget_file(path);
    Ok(())
}

/// The store knows what the founder brought and who goes on alone.
///
/// # Errors
/// The disk refused.
pub fn settled(folder: &Path, vault: &Vault) -> Result<(), ManagerError> {
    for name in [FOUNDER, FORCED] {
        let path = folder.join(name);
        if path.exists() {
            vault.forget_file(&path);
            Os.remove(&path).map_err(|e| ManagerError::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Gives the folder up again; the vault stays, for it was there before.
///
/// # Errors
/// A file cannot be removed.
pub fn disown(folder: &Path) -> Result<(), ManagerError> {
    for name in [FILE, FOUNDER, FORCED, LOG, snapshot::FILE] {
        let path = folder.join(name);
        Os.remove(&path).map_err(|e| ManagerError::io("remove", &path, e))?;
    }
    Ok(())
}

/// What a failure to open the log means to whoever starts a manager.
pub fn explain(failure: OpenError, path: &Path) -> ManagerError {
    let path = PathBuf::from(path);
    match failure {
        OpenError::Locked => ManagerError::Locked { path },
        OpenError::Missing => ManagerError::Lost { path },
        OpenError::Version(found) => {
            ManagerError::Version { path, found, known: log_store::VERSION }
        }
        OpenError::Damaged(reason) => ManagerError::Damaged { path, reason },
        OpenError::Io(source) => ManagerError::Io { what: "open", path, source },
    }
}

fn sealed<T>(
    path: &Path,
    vault: &Vault,
    context: &str,
    decode: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, ManagerError> {
    let damaged = |reason: String| ManagerError::Damaged { path: path.into(), reason };
    match vault.read_file(path, context) {
        Ok(bytes) => decode(&bytes).map(Some).ok_or_else(|| damaged("not a message".into())),
        Err(VaultError::Missing { .. }) => Ok(None),
        Err(failure @ VaultError::Io { .. }) => Err(failure.into()),
        Err(failure) => Err(damaged(failure.to_string())),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ManagerError> {
    files::replace(&Os, path, bytes).map_err(|e| ManagerError::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_remembers_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(load(&path).unwrap(), None);
        let vault = Vault::create(&path, None).unwrap();
        let identity = Identity { node_id: "n1".into(), raft_id: 7 };
        let node = JoinRequest { node_id: "n1".into(), ..JoinRequest::default() };
        let brought = Founding { node, cluster: shoal_api::Cluster::default() };
        claim(&path, &vault, &identity, Some(&brought)).unwrap();
        assert_eq!(load(&path).unwrap(), Some(identity.clone()));
        assert_eq!(founding(&path, &vault).unwrap(), Some(brought));
        let again = claim(&path, &vault, &identity, None).unwrap_err();
        assert!(matches!(again, ManagerError::InUse { .. }), "{again}");
        settled(&path, &vault).unwrap();
        assert_eq!(founding(&path, &vault).unwrap(), None);
    }

    #[test]
    fn a_damaged_identity_or_one_of_another_version_is_an_error_and_not_a_new_manager() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        for bad in ["version=1\nnode_id=n1\nraft_id=x\n", "", "version=1\nnode_id=\nraft_id=1\n"] {
            fs::write(&file, bad).unwrap();
            let damaged = load(folder.path()).unwrap_err();
            assert!(matches!(damaged, ManagerError::Damaged { .. }), "{damaged}");
        }
        fs::write(&file, "version=2\nsomething=else\n").unwrap();
        let newer = load(folder.path()).unwrap_err().to_string();
        assert!(newer.ends_with("is of version 2, this release reads 1"), "{newer}");
    }

    #[test]
    fn what_a_half_made_manager_left_behind_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let vault = Vault::create(path, None).unwrap();
        fs::write(path.join(LOG), "half a log").unwrap();
        fs::write(path.join(snapshot::FILE), "an old one").unwrap();
        assert_eq!(load(path).unwrap(), None);
        let identity = Identity { node_id: "n1".into(), raft_id: 7 };
        claim(path, &vault, &identity, None).unwrap();
        drop(LogStore::open(&path.join(LOG), &vault, &identity).unwrap());
        assert!(!path.join(snapshot::FILE).exists());
    }
}
