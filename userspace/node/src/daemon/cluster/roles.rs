//! Worker becomes manager and manager becomes worker, while tasks and packets go on.
//!
//! Each step leaves on disk what the next start makes good: a worker's Raft folder belongs to
//! nobody and is removed, and the certificate says which role the cluster gave last.

use std::sync::Arc;

use anyhow::Context as _;
use shoal_api::{NodeRole, Standing};
use shoal_manager::{Manager, Vault};
use tracing::{info, warn};

use super::Cluster;
use crate::daemon::gate::Behind;
use crate::daemon::sockets;
use crate::daemon::state::{self, Record, Role};

impl Cluster {
    /// The manager that runs here.
    pub(super) async fn manager(&self) -> Option<Arc<Manager>> {
        let running = self.0.running.lock().await;
        running.manager.as_ref().map(|serving| Arc::clone(&serving.manager))
    }

    /// The vault of the manager that runs here.
    pub(super) async fn vault(&self) -> Option<Vault> {
        let running = self.0.running.lock().await;
        running.manager.as_ref().map(|serving| serving.vault.clone())
    }

    /// Starts a manager under the Raft id that the cluster gave. Called with `changing` held.
    pub(super) async fn promote(&self, record: Record, raft_id: u64) -> anyhow::Result<()> {
        anyhow::ensure!(raft_id != 0, "the cluster gave this manager no Raft id");
        let credentials = self.look().credentials.context("this node has no certificate")?;
        let listener = sockets::listen(record.listen_addr).await?;
        // What an earlier try left: it never answered anybody.
        state::remove(&self.raft_dir())?;
        let vault = Vault::create(&self.raft_dir(), None)?;
        let record = Record { role: Role::Manager, raft_id, ..record };
        let config = self.manager_config(&record, &vault, &credentials);
        let manager = Arc::new(Manager::join(config, raft_id).await?);
        // The record goes last: a manager that has answered must never start without its log.
        let kept = self.0.certificates.seal(&vault).map_err(anyhow::Error::from);
        if let Err(error) = kept.and_then(|()| self.save(&record)) {
            manager.shutdown().await;
            self.0.certificates.unseal(&vault)?;
            return Err(error);
        }
        self.serve(&manager, vault, listener, &credentials).await;
        self.when_let_in(&manager, async {}).await;
        info!(raft.id = raft_id, "promoted: this node is a manager now");
        Ok(())
    }

    /// Begins anew as a manager under the Raft id that the cluster gives now. A manager that was
    /// demoted and promoted again before it heard of it would else go on with a log and an id that
    /// nobody counts any more. Ids only count up, so that old news moves nothing.
    pub(super) async fn follow_raft_id(&self, standing: &Standing) -> anyhow::Result<()> {
        let _changing = self.0.changing.lock().await;
        let Some(manager) = self.manager().await else { return Ok(()) };
        let outdated = standing.raft_id > manager.raft_id() && !manager.is_leader();
        if standing.role() != NodeRole::Manager || !outdated {
            return Ok(());
        }
        info!(raft.id = manager.raft_id(), given = standing.raft_id, "begins anew as a manager");
        drop(manager);
        if let Some(vault) = self.vault().await {
            self.0.certificates.unseal(&vault)?;
        }
        let record = self.look().record.context("this node has left")?;
        self.demote(record).await?;
        let record = self.look().record.context("this node has left")?;
        self.promote(record, standing.raft_id).await
    }

    /// Ends the manager: the others have taken it out of Raft. Called with `changing` held, after
    /// the key was unsealed.
    pub(super) async fn demote(&self, record: Record) -> anyhow::Result<()> {
        self.save(&Record { role: Role::Worker, raft_id: 0, ..record })?;
        self.0.gate.set(Behind::Worker);
        let serving = self.0.running.lock().await.manager.take();
        if let Some(serving) = serving {
            serving.stop().await;
        }
        if let Err(error) = state::remove(&self.raft_dir()) {
            // The next start does it.
            warn!(%error, "what the manager stored stays for now");
        }
        info!("demoted: this node is a worker now");
        Ok(())
    }
}
