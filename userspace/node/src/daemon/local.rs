//! The service `Local`: what only this host's daemon can do.

use std::pin::Pin;

use shoal_api::local_server::Local as Service;
use shoal_api::{
    BackupPiece, BackupRequest, Counter, InfoRequest, InfoResponse, InitRequest, InitResponse,
    JoinClusterRequest, JoinClusterResponse, LeaveRequest, LeaveResponse, LocalState,
    RestoreRequest, RestoreResponse, UnlockRequest, UnlockResponse,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::cluster::{Cluster, Seen, Wishes, availability, role};
use super::state::{Phase, Role};
use crate::sentence::sentence;

/// Answers the command line.
pub struct Local {
    cluster: Cluster,
}

impl Local {
    /// For this node.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

/// One sentence, as the command line prints it. What cannot be done is the node's state or the
/// request; a code for each would tell a caller nothing more.
#[allow(clippy::needless_pass_by_value, reason = "used as a function for map_err")]
fn refusal(error: anyhow::Error) -> Status {
    // A manager's own words are its message, without code and metadata.
    match error.downcast_ref::<Status>() {
        Some(status) => Status::failed_precondition(status.message()),
        None => Status::failed_precondition(sentence(&error)),
    }
}

/// Does it to its end, also when the caller goes away: half a membership is none.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(refusal),
        Err(_) => Err(Status::internal("the daemon failed; its log says why")),
    }
}

#[tonic::async_trait]
impl Service for Local {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let (cluster, request) = (self.cluster.clone(), request.into_inner());
        let answer = to_its_end(async move { cluster.init(request).await }).await?;
        Ok(Response::new(answer))
    }

    async fn join(
        &self,
        request: Request<JoinClusterRequest>,
    ) -> Result<Response<JoinClusterResponse>, Status> {
        let request = request.into_inner();
        let wishes = Wishes {
            availability: availability(request.availability).map_err(refusal)?,
            advertise_addr: request.advertise_addr,
            listen_addr: request.listen_addr,
            data_path_addr: request.data_path_addr,
            data_path_port: 0,
        };
        let (cluster, addrs, token) = (self.cluster.clone(), request.addrs, request.token);
        let joined = async move { cluster.join(&addrs, token.trim(), wishes).await };
        let record = to_its_end(joined).await?;
        Ok(Response::new(JoinClusterResponse {
            node_id: record.node_id,
            role: role(record.role).into(),
        }))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let (cluster, force) = (self.cluster.clone(), request.into_inner().force);
        to_its_end(async move { cluster.leave(force).await }).await?;
        Ok(Response::new(LeaveResponse {}))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let (cluster, key) = (self.cluster.clone(), request.into_inner().unlock_key);
        to_its_end(async move { cluster.unlock(&key).await }).await?;
        Ok(Response::new(UnlockResponse {}))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<BackupPiece, Status>> + Send>>;

    async fn backup(
        &self,
        request: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let key = request.into_inner().key;
        let pieces = self.cluster.backup(&key).await.map_err(refusal)?;
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn restore(
        &self,
        request: Request<Streaming<RestoreRequest>>,
    ) -> Result<Response<RestoreResponse>, Status> {
        let (cluster, pieces) = (self.cluster.clone(), request.into_inner());
        let answer = to_its_end(async move { cluster.restore(pieces).await }).await?;
        Ok(Response::new(answer))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let mut info = InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.cluster.name(),
            ..InfoResponse::default()
        };
        let Seen { record, kernel, credentials, locked, trouble } = self.cluster.look();
        let Some(record) = record else { return Ok(Response::new(info)) };
        info.set_state(match record.phase {
            _ if locked => LocalState::Locked,
            Phase::Restored => LocalState::Inactive,
            _ if trouble.is_some() => LocalState::Error,
            Phase::Active => LocalState::Active,
            Phase::Founding | Phase::Joining | Phase::Leaving => LocalState::Pending,
        });
        info.error = match record.phase {
            Phase::Restored if !locked => format!(
                "the state of node {} is restored: go on from it by \"shoal init \
                 --force-new-cluster\", or drop it by \"shoal leave\"",
                record.node_id
            ),
            _ if locked => super::gate::LOCKED.to_owned(),
            _ => trouble.unwrap_or_default(),
        };
        info.set_role(role(record.role));
        info.managers = self.cluster.managers().await;
        info.node_id = record.node_id;
        info.cluster_id = record.cluster_id;
        info.addr = match record.role {
            Role::Manager => record.advertise_addr,
            Role::Worker => record.data_path_addr.to_string(),
        };
        if let Some(credentials) = credentials {
            info.certificate_not_after_ns = credentials.certificate().not_after.nanos();
        }
        if let Some(kernel) = kernel {
            info.held_index = kernel.held_index();
            match kernel.choices().await {
                Ok(choices) => {
                    let show = |(key, value)| format!("{key}={value}");
                    info.dataplane = choices.into_iter().map(show).collect();
                }
                Err(error) => warn!(%error, "the data plane does not say what it chose"),
            }
            match kernel.counters().await {
                Ok(counters) => {
                    let show = |(name, (packets, bytes))| Counter { name, packets, bytes };
                    info.counters = counters.into_iter().map(show).collect();
                }
                Err(error) => warn!(%error, "the data plane's counters cannot be read"),
            }
        }
        Ok(Response::new(info))
    }
}
