//! A manager whose keys are locked: it waits for `shoal unlock`, while its tasks and packets go on.

use anyhow::Context as _;
use shoal_identity::UnlockKey;
use shoal_manager::{Vault, VaultError};
use tracing::info;

use super::Cluster;
use crate::daemon::gate::Behind;
use crate::daemon::state::{Phase, Record, Role};

impl Cluster {
    /// Goes on as a manager, or waits for the unlock key.
    pub(super) async fn resume_manager(&self, record: Record) -> anyhow::Result<()> {
        match Vault::open(&self.raft_dir(), None) {
            Ok(vault) => self.go_on_as_manager(record, Some(vault)).await,
            // Nothing was written before a restart cut the join off.
            Err(VaultError::Missing { .. }) if record.phase == Phase::Joining => {
                self.go_on_as_manager(record, None).await
            }
            Err(VaultError::Locked) => {
                info!("waits for the unlock key");
                self.remember(&record);
                self.seen().locked = true;
                self.0.gate.set(Behind::Locked);
                Ok(())
            }
            Err(error) => Err(error).with_context(|| {
                format!(
                    "this node cannot be the manager it was: bring its state back from a backup, \
                     or remove {} and join again as a new node",
                    self.0.state.path().display()
                )
            }),
        }
    }

    async fn go_on_as_manager(&self, record: Record, vault: Option<Vault>) -> anyhow::Result<()> {
        if record.phase == Phase::Joining {
            return self.go_on_joining(record, vault).await;
        }
        let held = self.0.certificates.load(vault.as_ref())?;
        let own = shoal_identity::Certificate::from_pem(&held.chain_pem)?;
        let demoted = own.identity.role != super::role(record.role);
        if demoted && let Some(vault) = &vault {
            // The daemon ended between the new certificate and the rest.
            let record = Record { role: Role::Worker, raft_id: 0, ..record };
            self.0.certificates.unseal(vault)?;
            self.save(&record)?;
            crate::daemon::state::remove(&self.raft_dir())?;
            return self.go_on(record, None).await;
        }
        self.go_on(record, vault).await
    }

    /// Goes on to wait for `shoal init --force-new-cluster`, or for the unlock key before that.
    pub(super) async fn resume_restored(&self, record: &Record) -> anyhow::Result<()> {
        match Vault::open(&self.raft_dir(), None) {
            Ok(vault) => *self.0.restored.lock().await = Some(vault),
            Err(VaultError::Locked) => {
                self.seen().locked = true;
                self.0.gate.set(Behind::Locked);
            }
            Err(error) => return Err(error.into()),
        }
        self.remember(record);
        Ok(())
    }

    /// Unlocks this manager and goes on.
    ///
    /// # Errors
    /// It is not locked, or the key is another; or what comes then fails.
    pub async fn unlock(&self, key: &str) -> anyhow::Result<()> {
        let _changing = self.change().await?;
        let record = {
            let seen = self.seen();
            seen.record.clone().filter(|_| seen.locked)
        };
        let record = record.context("swarm is not locked")?;
        let wrong = "swarm could not be unlocked: invalid key provided";
        let key = UnlockKey::parse(key.trim()).map_err(|_| anyhow::anyhow!(wrong))?;
        let vault = match Vault::open(&self.raft_dir(), Some(&key)) {
            Ok(vault) => vault,
            Err(VaultError::WrongKey) => anyhow::bail!(wrong),
            Err(error) => return Err(error).context("swarm component could not be started"),
        };
        self.seen().locked = false;
        if record.phase == Phase::Restored {
            *self.0.restored.lock().await = Some(vault);
            self.0.gate.set(Behind::Nothing);
            return Ok(());
        }
        self.0.gate.set(Behind::Pending);
        if let Err(error) = self.go_on_as_manager(record.clone(), Some(vault)).await {
            // As before, so that the next try may be a right one.
            self.stop().await;
            self.remember(&record);
            self.seen().locked = true;
            self.0.gate.set(Behind::Locked);
            return Err(error.context("swarm component could not be started"));
        }
        Ok(())
    }
}
