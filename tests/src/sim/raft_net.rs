//! Raft's messages over the simulated network, as the manager sends them over gRPC: each names the
//! raft id it is for, and who has another does not answer.

use std::future::Future;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft_rt_sim::SimInstant;

use super::disk::Mount;
use super::invariants::Event;
use super::manager::Running;
use super::network::{CallError, Sending, call};
use super::types::{Peer, Snapshot, TypeConfig, Vote};
use super::world::World;

/// As in the manager: how long a peer may take to store entries.
const APPEND: Duration = Duration::from_secs(1);
/// As in the manager: between two tries to reach a peer.
const RETRY: Duration = Duration::from_millis(100);
/// How long a snapshot may take.
const SNAPSHOT: Duration = Duration::from_secs(5);

type RpcError = RPCError<TypeConfig>;

/// Makes the connections of one manager.
pub(super) struct Network {
    pub(super) world: Weak<World>,
    pub(super) mount: Mount,
    pub(super) host: u32,
    pub(super) raft_id: u64,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, peer: &Peer) -> Connection {
        let (world, mount) = (self.world.clone(), self.mount.clone());
        let (host, raft_id) = (self.host, self.raft_id);
        Connection { world, mount, host, raft_id, target, to: peer.host() }
    }
}

/// To one peer.
pub(super) struct Connection {
    world: Weak<World>,
    mount: Mount,
    host: u32,
    raft_id: u64,
    target: u64,
    to: u32,
}

impl Connection {
    async fn ask<Q, A, R>(
        &self,
        action: RPCTypes,
        ttl: Duration,
        request: Q,
        doubles: bool,
        handle: impl Fn(Arc<Running>, Q) -> R + Send + Sync + 'static,
    ) -> Result<A, RpcError>
    where
        Q: Clone + Send + Sync + 'static,
        A: Send + 'static,
        R: Future<Output = Option<A>> + Send + 'static,
    {
        let gone = || {
            let gone = io::Error::other("nobody is there");
            RPCError::Unreachable(Unreachable::new(&gone))
        };
        let world = self.world.upgrade().filter(|_| self.mount.is_live()).ok_or_else(gone)?;
        let (id, target) = (self.raft_id, self.target);
        let sending = Sending { from: self.host, to: self.to, ttl, doubles };
        let handle = Arc::new(handle);
        let asked = call(&world, sending, move |running: Arc<Running>| {
            let (handle, request) = (handle.clone(), request.clone());
            async move {
                if running.raft_id != target {
                    return None;
                }
                handle(running, request).await
            }
        });
        match asked.await {
            Ok(answer) if self.mount.is_live() => Ok(answer),
            Ok(_) | Err(CallError::Unreachable) => Err(gone()),
            Err(CallError::Lost) => {
                Err(RPCError::Timeout(Timeout { action, id, target, timeout: ttl }))
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = Arc<Vec<u8>>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let ttl = if request.entries.is_empty() { option.hard_ttl() * 9 / 10 } else { APPEND };
        if let Some(world) = self.world.upgrade().filter(|_| self.mount.is_live()) {
            let term = request.vote.leader_id.term;
            world.judge.observe(&Event::Acted { raft_id: self.raft_id, term });
        }
        let handle = |running: Arc<Running>, request: AppendEntriesRequest<TypeConfig>| async move {
            let from = request.vote.leader_id.voted_for;
            let answer = running.raft.append_entries(request).await.ok()?;
            if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                *running.last_heard.lock() = Some((from, <SimInstant as openraft::Instant>::now()));
            }
            Some(answer)
        };
        self.ask(RPCTypes::AppendEntries, ttl, request, true, handle).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let handle = |running: Arc<Running>, request: VoteRequest<TypeConfig>| async move {
            running.raft.vote(request).await.ok()
        };
        self.ask(RPCTypes::Vote, option.soft_ttl(), request, true, handle).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let handle = |running: Arc<Running>, request: VoteRequest<TypeConfig>| async move {
            running.raft.pre_vote(request).await.ok()
        };
        self.ask(RPCTypes::Vote, option.soft_ttl(), request, true, handle).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let handle = |running: Arc<Running>, (vote, snapshot): (Vote, Snapshot)| async move {
            running.raft.install_full_snapshot(vote, snapshot).await.ok()
        };
        let sent = self.ask(RPCTypes::InstallSnapshot, SNAPSHOT, (vote, snapshot), true, handle);
        match sent.await {
            Ok(response) => Ok(response),
            Err(RPCError::Unreachable(failure)) => Err(StreamingError::Unreachable(failure)),
            Err(failure) => Err(StreamingError::Network(NetworkError::new(&failure))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let handle = |running: Arc<Running>, request: TransferLeaderRequest<TypeConfig>| async move {
            running.raft.handle_transfer_leader(request).await.ok()
        };
        self.ask(RPCTypes::TransferLeader, option.soft_ttl(), request, true, handle).await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY)))
    }
}
