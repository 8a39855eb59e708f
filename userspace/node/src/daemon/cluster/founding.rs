//! `shoal init`: a new cluster with this node as its first manager, or one that goes on from what
//! this manager alone has (`--force-new-cluster`).

use std::sync::Arc;

use anyhow::Context as _;
use shoal_api::control_client::ControlClient;
use shoal_api::{ClusterSpec, GetClusterRequest, GetUnlockKeyRequest, InitRequest, InitResponse};
use shoal_dataplane::Dataplane;
use shoal_identity::Key;
use shoal_manager::{Founding, Manager, NewCluster, Vault};
use shoal_transport::Credentials;
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::Cluster;
use super::addresses::{Wishes, availability};
use crate::daemon::certificates::Held;
use crate::daemon::gate::{Behind, LOCKED};
use crate::daemon::state::{Phase, Record, Role};
use crate::daemon::{renewal, sockets};

impl Cluster {
    /// Founds a cluster, or goes on from this manager's state without the others.
    ///
    /// # Errors
    /// This node is in a cluster, or in none where it should be; the machine lacks what a member
    /// needs; the cluster is not one that can be. Nothing is left of a new one then.
    pub async fn init(&self, request: InitRequest) -> anyhow::Result<InitResponse> {
        let _changing = self.change().await?;
        let wishes = Wishes {
            availability: availability(request.availability)?,
            advertise_addr: request.advertise_addr.clone(),
            listen_addr: request.listen_addr.clone(),
            data_path_addr: request.data_path_addr.clone(),
            data_path_port: request.data_path_port,
        };
        let there = self.look();
        match there.record {
            None if request.force_new_cluster => anyhow::bail!(
                "This node is not part of a swarm: there is no state here that a new cluster could \
                 be made from."
            ),
            None => self.found(request, wishes).await,
            Some(_) if there.locked && request.force_new_cluster => anyhow::bail!(LOCKED),
            Some(record) if request.force_new_cluster => self.force(record, wishes).await,
            Some(record) if record.phase == Phase::Restored => anyhow::bail!(
                "This node has a restored state: go on from it by \"shoal init \
                 --force-new-cluster\", or drop it by \"shoal leave\"."
            ),
            Some(_) => {
                self.ensure_inactive()?;
                unreachable!("there is a membership")
            }
        }
    }

    async fn found(&self, request: InitRequest, wishes: Wishes) -> anyhow::Result<InitResponse> {
        self.ensure_inactive()?;
        let key = Key::from_seed(&rand::random());
        let record = Record {
            node_id: key.node_id(),
            ..self.record(Phase::Founding, Role::Manager, &wishes)?
        };
        // Before anything is touched: what can be wrong with the request.
        let spec = request.spec.unwrap_or_default();
        let root = request.root.filter(|root| !root.cert_pem.is_empty());
        let new = NewCluster {
            node: self.join_request(&record),
            spec: ClusterSpec {
                name: if spec.name.is_empty() { "default".into() } else { spec.name.clone() },
                ..spec
            },
            address_pools: request.address_pools,
            subnet_size: request.subnet_size,
            root,
        };
        let given = new.root.clone();
        let (founding, issued) = Founding::new(new, &key, renewal::now())?;
        let held = Held { chain_pem: issued.chain_pem, roots_pem: issued.roots_pem, key };
        let answer = InitResponse {
            node_id: record.node_id.clone(),
            cluster_id: founding.cluster_id().to_owned(),
            addr: record.advertise_addr.clone(),
            worker_token: founding.tokens().worker,
            unlock_key: founding.unlock_key().map(|key| key.to_string()).unwrap_or_default(),
        };
        let listener = sockets::listen(record.listen_addr).await?;
        let dataplane = self.fresh_dataplane(&record).await?;
        let founded = async {
            self.save(&record)?;
            self.0.gate.set(Behind::Pending);
            self.start_first(record, founding, &held, listener, dataplane).await
        };
        if let Err(error) = founded.await {
            self.take_back().await;
            return Err(error);
        }
        info!(cluster.id = answer.cluster_id, own_root = given.is_none(), "cluster founded");
        Ok(answer)
    }

    async fn start_first(
        &self,
        record: Record,
        founding: Founding,
        held: &Held,
        listener: TcpListener,
        dataplane: Dataplane,
    ) -> anyhow::Result<()> {
        let cluster_id = founding.cluster_id().to_owned();
        let vault = Vault::create(&self.raft_dir(), founding.unlock_key().as_ref())?;
        self.0.certificates.save(held, Some(&vault))?;
        let credentials = self.credentials(Some(&vault))?;
        let config = self.manager_config(&record, &vault, &credentials);
        let manager = Arc::new(Manager::init(config, founding).await?);
        self.serve(&manager, vault, listener, &credentials).await;
        self.start_agent(&record, dataplane, &credentials).await?;
        self.save(&Record { cluster_id, phase: Phase::Active, ..record })?;
        self.0.gate.set(Behind::Manager(manager.local_services()));
        self.keep().await;
        Ok(())
    }

    /// Makes this manager the only one. Tasks and packets go on meanwhile.
    async fn force(&self, record: Record, wishes: Wishes) -> anyhow::Result<InitResponse> {
        if record.role != Role::Manager || record.phase == Phase::Joining {
            return Err(anyhow::anyhow!(Behind::Worker.refusal().message().to_owned()));
        }
        let record = self.with_wishes(record, wishes)?;
        let record = match record.phase {
            Phase::Restored => self.force_restored(record).await?,
            _ => self.force_running(record).await?,
        };
        self.answer(&record).await
    }

    /// A membership that goes on, with what the operator says about its addresses now.
    fn with_wishes(&self, record: Record, wishes: Wishes) -> anyhow::Result<Record> {
        let fresh = self.record(record.phase, record.role, &wishes)?;
        let kept = record.phase != Phase::Restored;
        anyhow::ensure!(
            !kept || [0, record.data_path_port.into()].contains(&wishes.data_path_port),
            "the data path port of a cluster cannot be changed: it is {} on all nodes",
            record.data_path_port
        );
        let keep = |now: String, before: String| if now.is_empty() { before } else { now };
        let record = Record {
            advertise_wish: keep(wishes.advertise_addr, record.advertise_wish.clone()),
            data_path_wish: keep(wishes.data_path_addr, record.data_path_wish.clone()),
            listen_wish: keep(wishes.listen_addr, record.listen_wish.clone()),
            data_path_port: if kept { record.data_path_port } else { fresh.data_path_port },
            ..record
        };
        self.addressed(record)
    }

    async fn force_restored(&self, record: Record) -> anyhow::Result<Record> {
        let vault = self.0.restored.lock().await.clone();
        let vault = vault.context("the keys of the restored state are not there")?;
        let listener = sockets::listen(record.listen_addr).await?;
        let dataplane = self.fresh_dataplane(&record).await?;
        let credentials = self.credentials(Some(&vault))?;
        self.0.certificates.seal(&vault)?;
        let forced = async {
            let config = self.manager_config(&record, &vault, &credentials);
            let node = self.join_request(&record);
            let manager = Arc::new(Manager::force_new_cluster(config, node).await?);
            self.serve(&manager, vault, listener, &credentials).await;
            self.start_agent(&record, dataplane, &credentials).await?;
            let record = Record { phase: Phase::Active, ..record.clone() };
            self.save(&record)?;
            self.when_let_in(&manager, async {}).await;
            self.keep().await;
            anyhow::Ok(record)
        };
        let forced = forced.await;
        if forced.is_err() {
            self.stop().await;
            self.unload(&record).await;
            self.0.gate.set(Behind::Nothing);
        }
        forced
    }

    async fn force_running(&self, record: Record) -> anyhow::Result<Record> {
        // Another address is tried while the manager still runs at the old one.
        let moved = self.look().record.is_some_and(|now| now.listen_addr != record.listen_addr);
        let early = if moved { Some(sockets::listen(record.listen_addr).await?) } else { None };
        let before = self.look().record.context("this node has left")?;
        let credentials = self.look().credentials.context("this node has no certificate")?;
        let serving = self.0.running.lock().await.manager.take();
        let serving = serving.context("the manager of this node does not run")?;
        self.0.gate.set(Behind::Pending);
        let vault = serving.vault.clone();
        serving.stop().await;
        let forced = async {
            self.save(&record)?;
            let listener = match early {
                Some(listener) => listener,
                None => sockets::listen(record.listen_addr).await?,
            };
            let config = self.manager_config(&record, &vault, &credentials);
            let manager = Manager::force_new_cluster(config, self.join_request(&record)).await?;
            anyhow::Ok((Arc::new(manager), listener))
        };
        match forced.await {
            Ok((manager, listener)) => {
                self.serve(&manager, vault, listener, &credentials).await;
                self.when_let_in(&manager, async {}).await;
                Ok(record)
            }
            Err(error) => {
                if let Err(lost) = self.as_before(&before, vault, &credentials).await {
                    // A daemon that starts anew tries again, or says what is wrong.
                    self.end(&lost.context("the manager of this node cannot go on")).await;
                }
                Err(error)
            }
        }
    }

    /// The manager again that a change stopped: without the others, maybe, but no worse.
    async fn as_before(
        &self,
        record: &Record,
        vault: Vault,
        credentials: &Credentials,
    ) -> anyhow::Result<()> {
        if let Err(error) = self.save(record) {
            // The next start goes by what is written.
            warn!(%error, "the membership cannot be written down");
            self.remember(record);
        }
        let listener = sockets::listen(record.listen_addr).await?;
        let config = self.manager_config(record, &vault, credentials);
        let manager = Arc::new(Manager::restart(config).await?);
        self.serve(&manager, vault, listener, credentials).await;
        self.0.gate.set(Behind::Manager(manager.local_services()));
        Ok(())
    }

    /// What the command line tells: where others join now.
    async fn answer(&self, record: &Record) -> anyhow::Result<InitResponse> {
        let manager = self.manager().await.context("the manager of this node does not run")?;
        manager.joined(super::member::LET_IN).await?;
        self.0.gate.set(Behind::Manager(manager.local_services()));
        let mut control = ControlClient::new(manager.local_services());
        let cluster = control.get_cluster(GetClusterRequest {}).await?.into_inner().cluster;
        let cluster = cluster.context("the manager does not know its cluster")?;
        let unlock = control.get_unlock_key(GetUnlockKeyRequest {}).await?.into_inner();
        let tokens = cluster.root_ca.and_then(|root| root.tokens).unwrap_or_default();
        Ok(InitResponse {
            node_id: record.node_id.clone(),
            cluster_id: cluster.id,
            addr: record.advertise_addr.clone(),
            worker_token: tokens.worker,
            unlock_key: unlock.unlock_key,
        })
    }
}
