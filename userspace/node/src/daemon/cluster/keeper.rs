//! Keeps this node's certificate valid, its roots those of the cluster, its role the wished one.
//!
//! One task for as long as the node is a member. It renews between 50 and 80 % of the certificate's
//! life, and at once when the cluster wants another role or root (`Standing`). Connections live on.

use std::time::Duration;

use anyhow::Context as _;
use shoal_api::{RenewRequest, RenewResponse, Standing};
use shoal_identity::Key;
use shoal_manager::Manager;
use shoal_transport::Credentials;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Cluster, own_role};
use crate::daemon::certificates::Held;
use crate::daemon::membership::{self, AskError};
use crate::daemon::renewal::{self, Pause};
use crate::daemon::state::Role;
use crate::sentence::sentence;

/// The longest sleep: a clock that was set is noticed within it.
const LOOK: Duration = Duration::from_secs(60);
/// How long the manager on this node may take to give a certificate: longer than an election.
const OWN: Duration = Duration::from_secs(8);
/// What a node says whose certificate no manager takes any more (swarm.md §1.13).
const EXPIRED: &str = "Swarm certificates have expired. To replace them, leave the swarm and join \
     again.";

/// What the agent hears of the managers about this node itself.
struct Heard {
    standing: watch::Receiver<Option<Standing>>,
    /// Why the managers do not let it in, if they do not.
    refused: watch::Receiver<Option<String>>,
}

impl Cluster {
    /// Starts the task, once the agent runs.
    pub(super) async fn keep(&self) {
        let mut running = self.0.running.lock().await;
        let Some(agent) = &running.agent else { return };
        let heard = Heard { standing: agent.standing(), refused: agent.refused() };
        let cluster = self.clone();
        running.watchers.push(tokio::spawn(async move { cluster.keep_on(heard).await }));
    }

    async fn keep_on(&self, mut heard: Heard) {
        let Some(credentials) = self.seen().credentials.clone() else { return };
        let seed = rand::random();
        let mut pause = Pause::default();
        let mut not_before = Instant::now();
        loop {
            let standing = heard.standing.borrow_and_update().clone();
            let refused = heard.refused.borrow_and_update().clone();
            if let Some(standing) = &standing
                && let Err(error) = self.trust(&credentials, standing)
            {
                warn!(error = sentence(&error), "the cluster's roots cannot be kept");
            }
            if let Some(standing) = &standing
                && let Err(error) = self.follow_raft_id(standing).await
            {
                warn!(error = sentence(&error), "cannot begin anew as a manager");
            }
            let due = renewal::due(&credentials, seed);
            let wanted = self.differs(standing.as_ref(), &credentials);
            if (wanted || renewal::now() >= due) && Instant::now() >= not_before {
                let renewed = self.renew(&credentials).await;
                let failed = renewed.err();
                match &failed {
                    None => pause.reset(),
                    Some(error) => {
                        warn!(error = sentence(error), "the certificate is not renewed");
                        not_before = Instant::now() + pause.next(wanted);
                    }
                }
                self.judge(&credentials, refused, failed.as_ref());
                if failed.is_none() {
                    continue;
                }
            } else {
                self.judge(&credentials, refused, None);
            }
            let until = due.since(renewal::now()).min(LOOK);
            let until = (Instant::now() + until).max(not_before.min(Instant::now() + LOOK));
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                changed = heard.standing.changed() => if changed.is_err() { return },
                changed = heard.refused.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Says what is wrong with this node, if anything is.
    fn judge(
        &self,
        credentials: &Credentials,
        refused: Option<String>,
        failed: Option<&anyhow::Error>,
    ) {
        let removed = failed.and_then(|error| match error.downcast_ref::<AskError>() {
            Some(AskError::Refused { reason }) => Some(reason.clone()),
            _ => None,
        });
        let expired = renewal::now() >= credentials.certificate().not_after;
        let expired = expired.then(|| EXPIRED.to_owned());
        self.trouble(removed.or(refused).or(expired));
    }

    /// Whether the cluster wants a certificate that says something else.
    fn differs(&self, standing: Option<&Standing>, credentials: &Credentials) -> bool {
        let Some(standing) = standing else { return false };
        let role = self.seen().record.as_ref().map(|record| record.role);
        let issuer = credentials.issuer_digest();
        credentials.identity().role != standing.role()
            || role != Some(own_role(standing.role()))
            || (!standing.issuer_digest.is_empty() && issuer != standing.issuer_digest)
    }

    /// Trusts what the cluster says, and remembers it.
    fn trust(&self, credentials: &Credentials, standing: &Standing) -> anyhow::Result<()> {
        if standing.roots_pem.is_empty() || credentials.roots_pem() == standing.roots_pem {
            return Ok(());
        }
        credentials.trust(&standing.roots_pem)?;
        self.0.certificates.save_roots(&standing.roots_pem)?;
        info!("trusts the roots that the cluster has now");
        Ok(())
    }

    /// Asks the manager on this node: it needs no certificate of ours, which may have expired.
    async fn ask_own(&self, manager: &Manager, csr: Vec<u8>) -> Option<RenewResponse> {
        match tokio::time::timeout(OWN, manager.renew(csr)).await {
            Ok(Ok(certificate)) => {
                Some(RenewResponse { certificate: Some(certificate), raft_id: 0 })
            }
            Ok(Err(status)) => {
                debug!(%status, "the manager on this node gives no certificate");
                None
            }
            Err(_late) => None,
        }
    }

    /// Gets a new certificate, and takes the role that it says.
    async fn renew(&self, credentials: &Credentials) -> anyhow::Result<()> {
        let key = Key::from_seed(&rand::random());
        let request = RenewRequest { csr: shoal_identity::csr::request(&key) };
        let mut addrs = self.managers().await;
        addrs.extend(self.look().record.map(|record| record.known()).unwrap_or_default());
        let own = match &self.manager().await {
            Some(manager) => self.ask_own(manager, request.csr.clone()).await,
            None => None,
        };
        let answer = match own {
            Some(answer) => answer,
            None => membership::renew(&addrs, credentials, &request).await?,
        };
        let issued = answer.certificate.context("the manager gave no certificate")?;
        let role = own_role(issued.role());
        let held = Held { chain_pem: issued.chain_pem, roots_pem: issued.roots_pem, key };

        let _changing = self.0.changing.lock().await;
        let record = self.look().record.context("this node has left")?;
        let vault = self.vault().await;
        match &vault {
            Some(vault) if role == Role::Worker => {
                self.0.certificates.unseal(vault)?;
                self.0.certificates.save(&held, None)?;
            }
            vault => self.0.certificates.save(&held, vault.as_ref())?,
        }
        credentials.replace(&held.chain_pem, &held.key, &held.roots_pem)?;
        info!(
            ?role,
            not_after = credentials.certificate().not_after.nanos(),
            "certificate renewed"
        );
        match (record.role, role) {
            (Role::Worker, Role::Manager) => self.promote(record, answer.raft_id).await,
            (Role::Manager, Role::Worker) => self.demote(record).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::NodeRole;
    use shoal_api::time::Timestamp;
    use shoal_identity::{Csr, Identity, Root};

    use super::*;
    use crate::config::{self, Environment, Flags};
    use crate::daemon::state::{Phase, Record, StateDir};

    /// A node with a certificate for an hour from then on, and the digest of its root.
    fn node(dir: &std::path::Path, issued: Timestamp) -> (Cluster, Credentials, String) {
        let file = dir.join("empty.toml");
        std::fs::write(&file, "").unwrap();
        let config = config::load(Flags::default(), None, Some(&file), &Environment(&|_| None));
        let (cluster, _fatal) = Cluster::new(config.unwrap(), StateDir::open(dir).unwrap());
        let root = Root::found(&[1; 32], issued);
        let key = Key::from_seed(&[2; 32]);
        let identity =
            Identity { node_id: key.node_id(), role: NodeRole::Worker, cluster_id: "c".repeat(25) };
        let csr = Csr::parse(&shoal_identity::csr::request(&key)).unwrap();
        let life = Duration::from_secs(3_600);
        let chain = root.issue(&csr, &identity, issued, life, [3; 16], "");
        let credentials = Credentials::new(&chain, &key, &root.cert_pem()).unwrap();
        (cluster, credentials, root.digest_hex())
    }

    #[test]
    fn a_node_says_what_keeps_it_out_and_forgets_it_when_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, expired, _) = node(dir.path(), Timestamp(1_700_000_000_000_000_000));
        let trouble = || cluster.look().trouble;
        cluster.judge(&expired, None, None);
        assert_eq!(trouble().as_deref(), Some(EXPIRED));
        cluster.judge(&expired, Some("two of me".into()), None);
        assert_eq!(trouble().as_deref(), Some("two of me"));
        let removed = anyhow::Error::from(AskError::Refused { reason: "was removed".into() });
        cluster.judge(&expired, Some("two of me".into()), Some(&removed));
        assert_eq!(trouble().as_deref(), Some("was removed"));

        let dir = tempfile::tempdir().unwrap();
        let (_, valid, _) = node(dir.path(), renewal::now());
        // A manager that does not answer is no trouble while the certificate is good.
        let silence = anyhow::Error::from(AskError::NoAnswer { reasons: Vec::new() });
        cluster.judge(&valid, None, Some(&silence));
        assert_eq!(trouble(), None);
    }

    #[test]
    fn another_role_or_root_asks_for_another_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, credentials, digest) = node(dir.path(), renewal::now());
        let record = cluster.record(
            Phase::Active,
            Role::Worker,
            &super::super::Wishes {
                advertise_addr: "127.0.0.1".into(),
                ..super::super::Wishes::default()
            },
        );
        cluster.remember(&record.unwrap());
        let as_is = Standing { issuer_digest: digest, ..Standing::default() };
        let differs = |standing: &Standing| cluster.differs(Some(standing), &credentials);
        assert!(!differs(&as_is));
        assert!(!cluster.differs(None, &credentials), "nobody said anything yet");
        assert!(differs(&Standing { role: NodeRole::Manager.into(), ..as_is.clone() }));
        assert!(differs(&Standing { issuer_digest: "00".repeat(32), ..as_is.clone() }));
        // The certificate is ahead of what runs here: a promotion that a crash cut off.
        let record = cluster.look().record.unwrap();
        cluster.remember(&Record { role: Role::Manager, ..record });
        assert!(differs(&as_is));
    }
}
