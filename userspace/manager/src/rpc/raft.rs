//! `Raft`: hands the other managers' messages to this manager's Raft node.

use std::fmt::Display;
use std::sync::Arc;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_api::RaftMessage;
use shoal_api::raft_server::Raft;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, status};
use crate::types::{ENCODING, Snapshot, SnapshotMeta, TypeConfig, Vote, from_message, to_message};
use crate::{snapshot, types};

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
}

fn answer<T: Serialize, E: Display>(result: Result<T, E>) -> Answer {
    let answer = result.map_err(status::stopped)?;
    let message = to_message(&answer).map_err(|reason| status::bad_message(&reason))?;
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl Raft for RaftRpc {
    async fn append_entries(&self, request: Request<RaftMessage>) -> Answer {
        let request: AppendEntriesRequest<TypeConfig> = self.decode(request.get_ref())?;
        let from = request.vote.leader_id.voted_for;
        let result = self.0.raft.append_entries(request).await;
        // One that leads no more is alive too, but nobody's leader.
        if !matches!(&result, Ok(AppendEntriesResponse::HigherVote(_)) | Err(_)) {
            self.0.last_heard.note(from);
        }
        answer(result)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Answer {
        answer(self.0.raft.vote(self.decode(request.get_ref())?).await)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Answer {
        answer(self.0.raft.pre_vote(self.decode(request.get_ref())?).await)
    }

    async fn install_snapshot(&self, request: Request<Streaming<RaftMessage>>) -> Answer {
        let mut messages = request.into_inner();
        let Some(head) = messages.message().await? else {
            return Err(status::bad_message(&types::invalid("an empty snapshot")));
        };
        let (vote, meta): (Vote, SnapshotMeta) = self.decode(&head)?;
        let mut bytes = Vec::new();
        while let Some(piece) = messages.message().await? {
            if piece.version != ENCODING {
                return Err(status::bad_message(&types::invalid("a piece of another encoding")));
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
        answer(self.0.raft.handle_transfer_leader(self.decode(request.get_ref())?).await)
    }
}
