//! `shoal join`: asks a cluster's managers to be let in, with a token that says as what.
//!
//! The key and the wish are written down before anyone is asked: a manager that says yes and a node
//! that forgets it would be two nodes. A node that was let in and waits to take part goes on in the
//! background, also after a restart.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_api::JoinRequest;
use shoal_dataplane::Dataplane;
use shoal_identity::{JoinToken, Key};
use shoal_manager::{Manager, Vault};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::addresses::Wishes;
use super::{Cluster, own_role};
use crate::daemon::certificates::Held;
use crate::daemon::gate::Behind;
use crate::daemon::membership::{self, AskError};
use crate::daemon::sockets::{self, DoorError};
use crate::daemon::state::{Phase, Record, Role, Token};
use crate::sentence::sentence;

/// How long `shoal join` tries to reach a manager that may be starting too.
const REACH: Duration = Duration::from_secs(10);
/// How long `shoal join` waits to be let in; Docker's (swarm.md CL3).
const JOIN: Duration = Duration::from_secs(20);
/// Between two tries to be let in while the command line waits.
const RETRY: Duration = Duration::from_millis(250);
/// Between two tries of a daemon that goes on joining in the background.
const RETRY_SLOW: Duration = Duration::from_secs(2);

/// What `shoal join` says then.
const LATE: &str = "Timeout was reached before node joined. The attempt to join the swarm will \
     continue in the background. Use the \"shoal info\" command to see the current swarm status of \
     your node.";

/// What a newcomer holds ready.
struct Ready {
    dataplane: Dataplane,
    /// A manager's port. Whether it is needed is in the token, which does not tell.
    listener: Result<TcpListener, DoorError>,
    /// Of a manager that got as far before a restart.
    vault: Option<Vault>,
}

impl Cluster {
    /// Joins the cluster of these managers.
    ///
    /// # Errors
    /// This node is in one, the machine lacks what a member needs, no manager answers, or one
    /// refuses; nothing is left then. When taking part takes too long, it goes on in the background.
    pub async fn join(
        &self,
        addrs: &[String],
        token: &str,
        wishes: Wishes,
    ) -> anyhow::Result<Record> {
        let _changing = self.change().await?;
        self.ensure_inactive()?;
        anyhow::ensure!(!addrs.is_empty(), "at least 1 RemoteAddr is required to join");
        let parsed = JoinToken::parse(token)?;
        let late = tokio::time::Instant::now() + JOIN;
        let key = Key::from_seed(&rand::random());
        let record = Record {
            node_id: key.node_id(),
            managers: addrs.iter().map(|addr| membership::with_port(addr.trim())).collect(),
            token: Token(token.to_owned()),
            ..self.record(Phase::Joining, Role::Worker, &wishes)?
        };
        let listener = sockets::listen(record.listen_addr).await;
        let dataplane = self.fresh_dataplane(&record).await?;
        let ready = Ready { dataplane, listener, vault: None };
        let joined = async {
            self.save(&record)?;
            self.0.certificates.save_key(&key)?;
            self.0.gate.set(Behind::Pending);
            let asked = self.ask(record.clone(), &key, &parsed, Some(REACH));
            match tokio::time::timeout_at(late, asked).await {
                Ok(asked) => Ok(Some(self.enter(asked?, ready).await?)),
                Err(_late) => Ok(None),
            }
        };
        let told = match joined.await {
            Ok(Some(told)) => told,
            Ok(None) => {
                // One of them may have said yes to nobody: asked again, it says yes to the same
                // node.
                self.go_on_joining(record, None).await?;
                anyhow::bail!(LATE);
            }
            Err(error) => {
                self.take_back().await;
                return Err(error);
            }
        };
        match tokio::time::timeout_at(late, told).await {
            Ok(Ok(record)) => Ok(record),
            _ => anyhow::bail!(LATE),
        }
    }

    /// Goes on with a join that a restart interrupted.
    ///
    /// * `vault` - of a manager that got as far as having one.
    pub(super) async fn go_on_joining(
        &self,
        record: Record,
        vault: Option<Vault>,
    ) -> anyhow::Result<()> {
        self.remember(&record);
        self.0.gate.set(Behind::Pending);
        let cluster = self.clone();
        let joining = tokio::spawn(async move {
            if let Err(error) = cluster.join_again(record, vault).await {
                // What it waits for may never come; `shoal leave` ends it.
                cluster.trouble(Some(sentence(&error)));
            }
        });
        self.0.running.lock().await.watchers.push(joining);
        Ok(())
    }

    async fn join_again(&self, record: Record, vault: Option<Vault>) -> anyhow::Result<()> {
        let record = self.readdressed(record)?;
        let dataplane = Dataplane::load(self.options(&record)).await?;
        let listener = sockets::listen(record.listen_addr).await;
        let record = if record.cluster_id.is_empty() {
            let key = self.0.certificates.load_key()?;
            let token = JoinToken::parse(&record.token.0)?;
            self.ask(record, &key, &token, None).await?
        } else {
            record
        };
        let _told = self.enter(record, Ready { dataplane, listener, vault }).await?;
        Ok(())
    }

    /// Asks to be let in until a manager answers, or for as long as `limit` says.
    async fn ask(
        &self,
        record: Record,
        key: &Key,
        token: &JoinToken,
        limit: Option<Duration>,
    ) -> anyhow::Result<Record> {
        let started = tokio::time::Instant::now();
        let retry = if limit.is_some() { RETRY } else { RETRY_SLOW };
        let request = JoinRequest {
            token: record.token.0.clone(),
            csr: shoal_identity::csr::request(key),
            ..self.join_request(&record)
        };
        let answer = loop {
            let late = limit.is_some_and(|limit| started.elapsed() >= limit);
            match membership::join(&record.managers, token, &request).await {
                Ok(answer) => break answer,
                Err(error @ (AskError::Refused { .. } | AskError::Wrong { .. })) => {
                    return Err(error.into());
                }
                Err(error) if late => return Err(error.into()),
                Err(error) => info!(%error, "asks again to be let in"),
            }
            tokio::time::sleep(retry).await;
        };
        let issued = answer.certificate.context("the manager let this node in without papers")?;
        let record = Record {
            role: own_role(issued.role()),
            cluster_id: answer.cluster_id,
            raft_id: answer.raft_id,
            heard: answer.managers,
            ..record
        };
        let key = Key::from_pem(&key.to_pem())?;
        let held = Held { chain_pem: issued.chain_pem, roots_pem: issued.roots_pem, key };
        self.0.certificates.save(&held, None)?;
        self.save(&record)?;
        Ok(record)
    }

    /// Starts what a member runs, and tells by the channel when the others have let it take part.
    async fn enter(
        &self,
        record: Record,
        ready: Ready,
    ) -> anyhow::Result<oneshot::Receiver<Record>> {
        let (tell, told) = oneshot::channel();
        let active = Record { phase: Phase::Active, token: Token::default(), ..record.clone() };
        if record.role == Role::Worker {
            super::super::state::remove(&self.raft_dir())?;
            let credentials = self.credentials(None)?;
            self.start_agent(&record, ready.dataplane, &credentials).await?;
            self.take_part(active, tell).await;
            self.0.gate.set(Behind::Worker);
            return Ok(told);
        }
        let listener = ready.listener.with_context(|| {
            // Which role a token gives is told by the answer only.
            format!(
                "the cluster counts node {} as a manager by now, take it out there by \"shoal node \
                 rm --force\"",
                record.node_id
            )
        })?;
        let vault = match ready.vault {
            Some(vault) => vault,
            None => Vault::open_or_create(&self.raft_dir())?,
        };
        let credentials = self.credentials(Some(&vault))?;
        self.0.certificates.seal(&vault)?;
        let config = self.manager_config(&record, &vault, &credentials);
        let manager = Arc::new(if shoal_manager::has_state(&config.state_dir) {
            Manager::restart(config).await?
        } else {
            Manager::join(config, record.raft_id).await?
        });
        self.serve(&manager, vault, listener, &credentials).await;
        self.start_agent(&record, ready.dataplane, &credentials).await?;
        let cluster = self.clone();
        self.when_let_in(&manager, async move { cluster.take_part(active, tell).await }).await;
        Ok(told)
    }

    /// The node is a member from now on.
    async fn take_part(&self, record: Record, tell: oneshot::Sender<Record>) {
        if let Err(error) = self.save(&record) {
            return self.end(&error).await;
        }
        info!(node.id = record.node_id, cluster.id = record.cluster_id, "joined");
        self.trouble(None);
        self.keep().await;
        // Nobody waits where the command line gave up.
        if tell.send(record).is_err() {
            warn!("nobody waited for it");
        }
    }

    /// Refuses where there is a membership.
    pub(super) fn ensure_inactive(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.seen().record.is_none(),
            "This node is already part of a swarm. Use \"shoal leave\" to leave this swarm and \
             join another one."
        );
        Ok(self.0.state.ensure_empty()?)
    }
}
