//! The service `Local`: what only this host's daemon can do.

use shoal_api::local_server::Local as Service;
use shoal_api::{
    Counter, InfoRequest, InfoResponse, InitRequest, InitResponse, JoinClusterRequest,
    JoinClusterResponse, LocalState, NodeRole,
};
use tonic::{Request, Response, Status};
use tracing::warn;

use super::cluster::{Cluster, role};
use super::state::Phase;
use crate::config::Advertise;
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
    Status::failed_precondition(sentence(&error))
}

fn advertise(text: &str) -> Result<Option<Advertise>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |error| Status::invalid_argument(format!("advertise address {text:?}: {error}"));
    text.parse().map(Some).map_err(invalid)
}

#[tonic::async_trait]
impl Service for Local {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let advertise = advertise(&request.into_inner().advertise_addr)?;
        let record = self.cluster.init(advertise).await.map_err(refusal)?;
        Ok(Response::new(InitResponse {
            node_id: record.node_id,
            cluster_id: record.cluster_id,
            addr: record.advertise_addr,
            ..InitResponse::default()
        }))
    }

    async fn join(
        &self,
        request: Request<JoinClusterRequest>,
    ) -> Result<Response<JoinClusterResponse>, Status> {
        let request = request.into_inner();
        let advertise = advertise(&request.advertise_addr)?;
        let wanted = request.role();
        if request.addrs.is_empty() {
            return Err(Status::invalid_argument("at least 1 RemoteAddr is required to join"));
        }
        let record = self.cluster.join(request.addrs, wanted, advertise).await.map_err(refusal)?;
        Ok(Response::new(JoinClusterResponse {
            node_id: record.node_id,
            role: role(record.role).into(),
        }))
    }

    async fn leave(
        &self,
        _request: Request<shoal_api::LeaveRequest>,
    ) -> Result<Response<shoal_api::LeaveResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn unlock(
        &self,
        _request: Request<shoal_api::UnlockRequest>,
    ) -> Result<Response<shoal_api::UnlockResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    type BackupStream = tokio_stream::Empty<Result<shoal_api::BackupPiece, Status>>;

    async fn backup(
        &self,
        _request: Request<shoal_api::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn restore(
        &self,
        _request: Request<tonic::Streaming<shoal_api::RestoreRequest>>,
    ) -> Result<Response<shoal_api::RestoreResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let mut info = InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InfoResponse::default()
        };
        let (record, kernel) = self.cluster.look();
        let Some(record) = record else { return Ok(Response::new(info)) };
        info.set_state(match record.phase {
            Phase::Active => LocalState::Active,
            Phase::Founding | Phase::Joining => LocalState::Pending,
        });
        info.set_role(role(record.role));
        info.node_id = record.node_id;
        info.cluster_id = record.cluster_id;
        info.addr = match info.role() {
            NodeRole::Manager => record.advertise_addr,
            NodeRole::Worker => record.data_path_addr.to_string(),
        };
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
