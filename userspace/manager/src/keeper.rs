//! Keeps what lies on this manager's disk in step with what the cluster says.
//!
//! When the cluster's unlock key changes, the vault is locked by the new one, everything is sealed
//! under a new data key, and then the old one is forgotten. A manager that was killed in between
//! does the rest when it is started again. When the store knows what a founder brought, or who goes
//! on alone, the files that said so are taken away. When fewer snapshots are wanted beside the newest,
//! the others go at once and not with the next snapshot.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shoal_identity::UnlockKey;
use tracing::{error, info};

use crate::error::ManagerError;
use crate::identity;
use crate::log_store::LogStore;
use crate::snapshot::older;
use crate::state_machine::{StateMachine, View};
use crate::vault::Vault;

/// Between two tries on a disk that refuses.
const RETRY: Duration = Duration::from_secs(2);

/// What the task needs.
pub struct Keeper {
    /// The Raft folder.
    pub folder: PathBuf,
    /// This manager's id in Raft.
    pub raft_id: u64,
    /// What the folder is sealed by.
    pub vault: Vault,
    /// The log.
    pub log: LogStore,
    /// The snapshot.
    pub machine: StateMachine,
    /// What the cluster says.
    pub view: Arc<View>,
}

impl Keeper {
    /// Follows the store until the manager ends.
    pub async fn run(self) {
        let mut applied = self.view.events.applied();
        let mut unsettled = true;
        let mut wanted = None;
        loop {
            applied.borrow_and_update();
            let done = self.settle(&mut unsettled).and_then(|()| self.relock());
            let done = match done {
                Ok(()) if self.vault.has_old_keys() => self.reseal().await,
                other => other,
            };
            let done = match done {
                Ok(()) => self.prune(&mut wanted).await,
                other => other,
            };
            if let Err(failure) = done {
                error!(%failure, "the manager's keys or files are not in order, trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    fn settle(&self, unsettled: &mut bool) -> Result<(), ManagerError> {
        if *unsettled && self.view.raft_ids().contains(&self.raft_id) {
            identity::settled(&self.folder, &self.vault)?;
            *unsettled = false;
        }
        Ok(())
    }

    fn relock(&self) -> Result<(), ManagerError> {
        let store = self.view.store();
        let Some(cluster) = store.cluster() else { return Ok(()) };
        let version = cluster.meta.as_ref().map_or(0, |meta| meta.version);
        let Some(unlock) = lock_of(&cluster.unlock_key) else {
            error!(
                "the cluster's unlock key is not one, the manager's keys keep the lock they have"
            );
            return Ok(());
        };
        if self.vault.is_stale(unlock.as_ref(), version) {
            self.vault.relock(unlock.as_ref(), version)?;
            info!(locked = unlock.is_some(), "the manager's keys have a new lock");
        }
        Ok(())
    }

    /// Older snapshots that are not wanted any more.
    async fn prune(&self, wanted: &mut Option<usize>) -> Result<(), ManagerError> {
        let now = older::wanted(&self.view.store());
        if let Some(count) = now
            && now != *wanted
        {
            let failed = |e| ManagerError::io("remove old snapshots in", &self.folder, e);
            self.machine.prune_older(count).await.map_err(failed)?;
            *wanted = now;
        }
        Ok(())
    }

    /// After this nothing on the disk needs an older data key.
    async fn reseal(&self) -> Result<(), ManagerError> {
        let newest = self.vault.newest().0;
        let failed = |e| ManagerError::io("seal", &self.folder, e);
        self.log.reseal().await.map_err(failed)?;
        self.machine.reseal().await.map_err(failed)?;
        self.vault.reseal_files()?;
        self.vault.retire(newest)?;
        info!("everything is sealed under the new data key");
        Ok(())
    }
}

/// The lock that the cluster's object asks for: a key, or none where it names none. `None`: what it
/// names is no key, which must not unlock anything.
fn lock_of(unlock_key: &str) -> Option<Option<UnlockKey>> {
    if unlock_key.is_empty() {
        return Some(None);
    }
    UnlockKey::parse(unlock_key).ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_unlock_key_unlocks() {
        assert!(matches!(lock_of(""), Some(None)));
        let key = UnlockKey::from_bytes([7; 32]);
        let asked = lock_of(&key.to_string()).flatten().expect("it is a key");
        assert_eq!(asked.as_bytes(), key.as_bytes());
        for bad in [" ", "SWMKEY-1-", "SWMKEY-1-short", "SWMKEY-2-AAAA", "none"] {
            assert!(lock_of(bad).is_none(), "{bad:?}");
        }
    }
}
