//! Who a state directory belongs to, so that no manager runs on another's log.
//!
//! One text file, `key=value` per line, and beside it the founder's own node until the cluster has
//! it. Both are written before Raft starts, so a crash in between is made good at the next start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use shoal_api::JoinRequest;

use crate::ManagerError;

const FILE: &str = "manager";
const FOUNDER: &str = "founder";

/// Whose state it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node_id: String,
    /// Its id in Raft.
    pub raft_id: u64,
}

/// Reads the identity; `None` in a folder that no manager has used.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn load(folder: &Path) -> Result<Option<Identity>, ManagerError> {
    let path = folder.join(FILE);
    let Some(bytes) = read(&path)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let field = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(str::to_owned)
    };
    match (field("node_id"), field("raft_id").and_then(|id| id.parse().ok())) {
        (Some(node_id), Some(raft_id)) => Ok(Some(Identity { node_id, raft_id })),
        _ => Err(ManagerError::Damaged { path, reason: "not a manager's identity".into() }),
    }
}

/// Makes the folder this manager's own.
///
/// # Errors
/// It is somebody's already, or cannot be written.
pub fn claim(
    folder: &Path,
    identity: &Identity,
    founder: Option<&JoinRequest>,
) -> Result<(), ManagerError> {
    fs::create_dir_all(folder).map_err(|e| ManagerError::io("create", folder, e))?;
    if load(folder)?.is_some() {
        return Err(ManagerError::InUse { folder: folder.into() });
    }
    if let Some(founder) = founder {
        write(&folder.join(FOUNDER), &founder.encode_to_vec())?;
    }
    let text = format!("node_id={}\nraft_id={}\n", identity.node_id, identity.raft_id);
    write(&folder.join(FILE), text.as_bytes())
}

/// The node of the manager that founds the cluster; `None` for one that joined it.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn founder(folder: &Path) -> Result<Option<JoinRequest>, ManagerError> {
    let path = folder.join(FOUNDER);
    let Some(bytes) = read(&path)? else { return Ok(None) };
    let node = JoinRequest::decode(bytes.as_slice());
    node.map(Some).map_err(|e| ManagerError::Damaged { path, reason: e.to_string() })
}

/// Gives the folder up again, with these other files.
///
/// # Errors
/// A file cannot be removed.
pub fn disown(folder: &Path, others: &[&str]) -> Result<(), ManagerError> {
    for name in [FILE, FOUNDER].iter().chain(others) {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Err(failure) if failure.kind() != io::ErrorKind::NotFound => {
                return Err(ManagerError::io("remove", &path, failure));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, ManagerError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(failure) => Err(ManagerError::io("read", path, failure)),
    }
}

/// Whole or not at all, also when the machine stops in between.
fn write(path: &Path, bytes: &[u8]) -> Result<(), ManagerError> {
    let temporary = PathBuf::from(format!("{}.new", path.display()));
    let folder = path.parent().expect("a file of ours lies in a folder of ours");
    File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(|e| ManagerError::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_remembers_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(load(&path).unwrap(), None);
        let identity = Identity { node_id: "n1".into(), raft_id: 7 };
        let node = JoinRequest { node_id: "n1".into(), ..JoinRequest::default() };
        claim(&path, &identity, Some(&node)).unwrap();
        assert_eq!(load(&path).unwrap(), Some(identity.clone()));
        assert_eq!(founder(&path).unwrap(), Some(node));
        let again = claim(&path, &identity, None).unwrap_err();
        assert!(matches!(again, ManagerError::InUse { .. }), "{again}");
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_a_new_manager() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "node_id=n1\nraft_id=x\n").unwrap();
        let damaged = load(folder.path()).unwrap_err();
        assert!(matches!(damaged, ManagerError::Damaged { .. }), "{damaged}");
    }
}
