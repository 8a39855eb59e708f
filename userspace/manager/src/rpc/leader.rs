//! `Leader`, what managers ask of the leader, and `Membership`, by which nodes join.

use std::sync::Arc;

use shoal_api::leader_server::Leader;
use shoal_api::membership_server::Membership;
use shoal_api::{
    Caller, ForwardRequest, JoinRequest, JoinResponse, NodeSpec, ReadIndexRequest,
    ReadIndexResponse, StatusRequest, StatusResponse, Write, WriteResult, write, write_result,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Shared, status, to_leader};
use crate::leader::Command;

/// `Leader`.
pub struct LeaderRpc(pub Arc<Shared>);

impl LeaderRpc {
    fn not_leader(&self) -> Status {
        let leader = to_leader::leader(&self.0).filter(|(id, _)| *id != self.0.raft_id);
        status::not_leader(&leader.map(|(_, addr)| addr).unwrap_or_default())
    }
}

#[tonic::async_trait]
impl Leader for LeaderRpc {
    async fn forward(
        &self,
        request: Request<ForwardRequest>,
    ) -> Result<Response<WriteResult>, Status> {
        let ForwardRequest { caller, write } = request.into_inner();
        let (reply, answer) = oneshot::channel();
        let (caller, write) = (caller.unwrap_or_default(), write.unwrap_or_default());
        let command = Command::Write { caller, write, reply };
        self.0.desk.send(command).map_err(|_| self.not_leader())?;
        match answer.await {
            Ok(Ok(result)) => Ok(Response::new(result)),
            Ok(Err(refusal)) => Err(status::refused(&refusal)),
            Err(_dropped) => Err(status::unknown_outcome()),
        }
    }

    async fn announce(
        &self,
        _request: Request<shoal_api::AnnounceRequest>,
    ) -> Result<Response<shoal_api::AnnounceResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn read_index(
        &self,
        _request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        let deadline = Instant::now() + self.0.read_timeout;
        let index = to_leader::own_read_index(&self.0, deadline).await;
        let index = index.ok_or_else(|| self.not_leader())?;
        let leader_id = self.0.node_id.clone();
        Ok(Response::new(ReadIndexResponse { index, leader_id, reachable: Vec::new() }))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let (reply, answer) = oneshot::channel();
        self.0.desk.send(Command::Progress { reply }).map_err(|_| self.not_leader())?;
        let nodes = answer.await.map_err(|_dropped| self.not_leader())?;
        let applied_index = *self.0.view.events.applied().borrow();
        let leader_id = self.0.node_id.clone();
        Ok(Response::new(StatusResponse { leader_id, applied_index, nodes }))
    }
}

/// `Membership`.
pub struct MembershipRpc(pub Arc<Shared>);

#[tonic::async_trait]
impl Membership for MembershipRpc {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        // Whoever joins speaks for itself: it has no certificate yet.
        let caller = Caller {
            node_id: request.node_id.clone(),
            role: request.spec.as_ref().map_or(0, |spec: &NodeSpec| spec.role),
        };
        let write = Write { write: Some(write::Write::Join(request)) };
        match to_leader::write(&self.0, caller, write).await?.result {
            Some(write_result::Result::Joined(response)) => Ok(Response::new(response)),
            _ => Err(status::unexpected()),
        }
    }
}
