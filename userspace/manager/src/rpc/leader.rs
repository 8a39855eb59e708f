//! `Leader`: what managers ask of the leader, and where they say where they are.

use std::sync::Arc;

use shoal_api::leader_server::Leader;
use shoal_api::{
    AnnounceRequest, AnnounceResponse, ForwardRequest, ReadIndexRequest, ReadIndexResponse,
    StatusRequest, StatusResponse, WriteResult,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::serve::{self, Unserved};
use super::{Shared, caller, status, to_leader};
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
        caller::colleague(&self.0, &request)?;
        // The manager that took the call has checked whose it is; `serve` looks again.
        let ForwardRequest { caller, write } = request.into_inner();
        let (caller, write) = (caller.unwrap_or_default(), write.unwrap_or_default());
        match serve::write(&self.0, caller, write).await {
            Ok(result) => Ok(Response::new(result)),
            Err(Unserved::NotHere) => Err(self.not_leader()),
            Err(Unserved::Lost) => Err(status::unknown_outcome()),
            Err(Unserved::Refused(refusal)) => Err(refusal),
        }
    }

    async fn announce(
        &self,
        request: Request<AnnounceRequest>,
    ) -> Result<Response<AnnounceResponse>, Status> {
        let peer = caller::raft_peer(&self.0, &request)?;
        if let Some(mut from) = request.get_ref().from.clone() {
            peer.speaks_for(&self.0, from.raft_id)?;
            from.node_id = peer.node_id().to_owned();
            self.0.book.take(from);
        }
        Ok(Response::new(AnnounceResponse { managers: self.0.book.all() }))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        caller::colleague(&self.0, &request)?;
        let deadline = Instant::now() + self.0.read_timeout;
        let caught = to_leader::own_read_index(&self.0, deadline).await;
        let caught = caught.ok_or_else(|| self.not_leader())?;
        let leader_id = self.0.node_id.clone();
        let reachable = caught.reachable.into_iter().collect();
        Ok(Response::new(ReadIndexResponse { index: caught.index, leader_id, reachable }))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        caller::colleague(&self.0, &request)?;
        let (reply, answer) = oneshot::channel();
        self.0.desk.send(Command::Progress { reply }).map_err(|_| self.not_leader())?;
        let nodes = answer.await.map_err(|_dropped| self.not_leader())?;
        let applied_index = *self.0.view.events.applied().borrow();
        let leader_id = self.0.node_id.clone();
        Ok(Response::new(StatusResponse { leader_id, applied_index, nodes }))
    }
}
