//! `Raft`: hands the other managers' messages to this manager's Raft node.
//!
//! A message counts only from the node that holds its sender's Raft id: a manager that was removed
//! can neither vote nor be a leader, whatever it still has on its disk.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_api::RaftMessage;
use shoal_api::raft_server::Raft;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::caller::{self, RaftPeer};
use super::{Shared, status};
use crate::types::{ENCODING, Snapshot, SnapshotMeta, TypeConfig, Vote, from_message, to_message};
use crate::{snapshot, types};

/// Snapshots that are taken in at once: the leader's, and one of a leader before it whose end was
/// not noticed. More would only take memory.
pub const SNAPSHOTS: usize = 2;
/// Between two pieces of a snapshot: a sender that is silent for longer is gone.
const PIECE: Duration = Duration::from_secs(10);

/// The service.
pub struct RaftRpc(pub Arc<Shared>);

type Answer = Result<Response<RaftMessage>, Status>;

impl RaftRpc {
    /// A request to this manager, of this cluster. What is for another must not be answered: the
    /// answer would count as that one's.
    fn decode<T: DeserializeOwned>(&self, request: &RaftMessage) -> Result<T, Status> {
        if request.to != self.0.raft_id {
            return Err(status::another_manager(request.to, self.0.raft_id));
        }
        match self.0.view.cluster_id() {
            Some(own) if !request.cluster_id.is_empty() && request.cluster_id != own => {
                Err(status::another_cluster(&request.cluster_id, &own))
            }
            _ => from_message(request).map_err(|reason| status::bad_message(&reason)),
        }
    }

    /// Whether the peer may say what this member says.
    fn check(&self, peer: &RaftPeer, sender: &Vote) -> Result<(), Status> {
        peer.speaks_for(&self.0, sender.leader_id.voted_for)
    }

    fn vote_request(
        &self,
        request: &Request<RaftMessage>,
    ) -> Result<VoteRequest<TypeConfig>, Status> {
        let peer = caller::raft_peer(&self.0, request)?;
        let request: VoteRequest<TypeConfig> = self.decode(request.get_ref())?;
        self.check(&peer, &request.vote)?;
        Ok(request)
    }
}

fn answer<T: Serialize, E: Display>(result: Result<T, E>) -> Answer {
    let answer = result.map_err(status::stopped)?;
    let message = to_message(&answer).map_err(|reason| status::bad_message(&reason))?;
    Ok(Response::new(message))
}

async fn next(messages: &mut Streaming<RaftMessage>) -> Result<Option<RaftMessage>, Status> {
    let next = timeout(PIECE, messages.message()).await;
    next.map_err(|_late| status::stalled("the snapshot"))?
}

#[tonic::async_trait]
impl Raft for RaftRpc {
    async fn append_entries(&self, request: Request<RaftMessage>) -> Answer {
        let peer = caller::raft_peer(&self.0, &request)?;
        let request: AppendEntriesRequest<TypeConfig> = self.decode(request.get_ref())?;
        self.check(&peer, &request.vote)?;
        let from = request.vote.leader_id.voted_for;
        let result = self.0.raft.append_entries(request).await;
        // One that leads no more is alive too, but nobody's leader.
        if !matches!(&result, Ok(AppendEntriesResponse::HigherVote(_)) | Err(_)) {
            self.0.last_heard.note(from);
        }
        answer(result)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Answer {
        let request = self.vote_request(&request)?;
        answer(self.0.raft.vote(request).await)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Answer {
        let request = self.vote_request(&request)?;
        answer(self.0.raft.pre_vote(request).await)
    }

    async fn install_snapshot(&self, request: Request<Streaming<RaftMessage>>) -> Answer {
        let peer = caller::raft_peer(&self.0, &request)?;
        let room = self.0.snapshots.try_acquire();
        let _room = room.map_err(|_full| status::busy("snapshots"))?;
        let mut messages = request.into_inner();
        let Some(head) = next(&mut messages).await? else {
            return Err(status::bad_message(&types::invalid("an empty snapshot")));
        };
        let (vote, meta): (Vote, SnapshotMeta) = self.decode(&head)?;
        self.check(&peer, &vote)?;
        let mut bytes = Vec::new();
        while let Some(piece) = next(&mut messages).await? {
            if piece.version != ENCODING {
                return Err(status::bad_message(&types::invalid("a piece of another encoding")));
            }
            // It may be removed meanwhile.
            self.check(&peer, &vote)?;
            if bytes.len() + piece.payload.len() > snapshot::LARGEST {
                return Err(status::bad_message(&types::invalid("a snapshot that is too large")));
            }
            bytes.extend(piece.payload);
        }
        // What was damaged on the way must not reach Raft: it would end this manager.
        let (whole, _) = snapshot::decode(&bytes).map_err(|e| status::bad_message(&e))?;
        if whole != meta {
            return Err(status::bad_message(&types::invalid("another snapshot than announced")));
        }
        let snapshot = Snapshot { meta, snapshot: Arc::new(bytes) };
        answer(self.0.raft.install_full_snapshot(vote, snapshot).await)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Answer {
        let peer = caller::raft_peer(&self.0, &request)?;
        let request: TransferLeaderRequest<TypeConfig> = self.decode(request.get_ref())?;
        self.check(&peer, request.from_leader())?;
        answer(self.0.raft.handle_transfer_leader(request).await)
    }
}
