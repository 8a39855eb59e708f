//! Carries Raft's messages to the other managers over gRPC.
//!
//! Every peer and purpose (entries, heartbeats, snapshots, votes) has its own connection, so a dead
//! peer or a long snapshot delays nobody else. A connection on which requests time out is given up:
//! TCP would wait out its own back-off, many seconds, after a cut host is reachable again.

use std::future::Future;
use std::io;
use std::sync::Arc;
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
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_api::RaftMessage;
use shoal_api::raft_client::RaftClient;
use shoal_transport::{Credentials, Dial, DialError};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::address_book::AddressBook;
use crate::state_machine::View;
use crate::types::{ENCODING, Peer, Snapshot, TypeConfig, Vote, from_message, to_message};

/// Messages may be larger than gRPC's default of 4 MiB: a few hundred entries go in one.
pub const MAX_MESSAGE: usize = 64 << 20;
/// Bytes of a snapshot in one message.
const PIECE: usize = 1 << 20;
/// How long a peer may take to store entries; a disk's flush can take a while under load.
const APPEND: Duration = Duration::from_secs(1);
/// Time-outs in a row before a connection is given up; one can be a busy moment of the peer.
const PATIENCE: u32 = 2;
/// Between two tries to reach a peer: a joining or returning manager is found within this.
const RETRY: Duration = Duration::from_millis(100);

type RpcError = RPCError<TypeConfig>;

/// A connection to a manager, made now.
///
/// # Errors
/// It cannot be reached, or is no manager of this cluster.
pub async fn connect(credentials: &Credentials, addr: &str) -> Result<Channel, DialError> {
    shoal_transport::connect(credentials, addr, &dial()).await
}

/// A dead peer is noticed though nothing is asked of it: the next call must not wait for it.
fn dial() -> Dial {
    Dial { keepalive_while_idle: true, ..Dial::default() }
}

/// Makes the connections.
pub struct Network {
    /// This manager.
    pub id: u64,
    /// Knows the cluster.
    pub view: Arc<View>,
    /// Where the others are, when not where the membership says.
    pub book: Arc<AddressBook>,
    /// This node's certificate.
    pub credentials: Credentials,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, peer: &Peer) -> Connection {
        Connection {
            id: self.id,
            view: self.view.clone(),
            book: self.book.clone(),
            credentials: self.credentials.clone(),
            target,
            addr: peer.addr.clone(),
            client: None,
            timeouts: 0,
        }
    }
}

/// One connection to one peer.
pub struct Connection {
    id: u64,
    view: Arc<View>,
    book: Arc<AddressBook>,
    credentials: Credentials,
    target: u64,
    /// Of the membership when this was made.
    addr: String,
    /// And the address that it goes to, with which of our certificates.
    client: Option<(String, u64, RaftClient<Channel>)>,
    timeouts: u32,
}

impl Connection {
    fn client(&mut self) -> Result<RaftClient<Channel>, RpcError> {
        let addr = self.book.addr(self.target).unwrap_or_else(|| self.addr.clone());
        // One that was made under an older certificate may be refused soon.
        let generation = self.credentials.generation();
        if let Some((to, with, client)) = &self.client
            && (to, *with) == (&addr, generation)
        {
            return Ok(client.clone());
        }
        let channel = shoal_transport::lazy(&self.credentials, &addr, &dial())
            .map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))?;
        let client = RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        self.client = Some((addr, generation, client.clone()));
        Ok(client)
    }

    /// A message for this peer and no other.
    fn message<T: Serialize>(&self, value: &T) -> io::Result<RaftMessage> {
        let cluster_id = self.view.cluster_id().unwrap_or_default();
        Ok(RaftMessage { to: self.target, cluster_id, ..to_message(value)? })
    }

    /// One request, one answer, within `ttl`.
    async fn call<Q, A, F>(
        &mut self,
        action: RPCTypes,
        ttl: Duration,
        request: &Q,
        send: impl FnOnce(RaftClient<Channel>, RaftMessage) -> F,
    ) -> Result<A, RpcError>
    where
        Q: Serialize,
        A: DeserializeOwned,
        F: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let client = self.client()?;
        let message = self.message(request).map_err(|e| network(&e))?;
        match tokio::time::timeout(ttl, send(client, message)).await {
            Ok(Ok(response)) => {
                self.timeouts = 0;
                from_message(response.get_ref()).map_err(|e| network(&e))
            }
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_elapsed) => {
                self.timeouts += 1;
                if self.timeouts >= PATIENCE {
                    self.timeouts = 0;
                    self.client = None;
                }
                let (id, target) = (self.id, self.target);
                Err(RPCError::Timeout(Timeout { action, id, target, timeout: ttl }))
            }
        }
    }

    /// Makes Raft wait a moment before it tries the peer again.
    fn failed(&mut self, status: &Status) -> RpcError {
        self.client = None;
        RPCError::Unreachable(Unreachable::new(status))
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = Arc<Vec<u8>>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        // Raft itself gives up a heartbeat at the hard limit; ours comes first so that it counts.
        let ttl = if request.entries.is_empty() { option.hard_ttl() * 9 / 10 } else { APPEND };
        self.call(RPCTypes::AppendEntries, ttl, &request, |mut client, message| async move {
            client.append_entries(message).await
        })
        .await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let ttl = option.soft_ttl();
        self.call(RPCTypes::Vote, ttl, &request, |mut client, message| async move {
            client.vote(message).await
        })
        .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let ttl = option.soft_ttl();
        self.call(RPCTypes::Vote, ttl, &request, |mut client, message| async move {
            client.pre_vote(message).await
        })
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client()?;
        let head = self.message(&(vote, snapshot.meta)).map_err(|e| streaming(&e))?;
        let bytes = snapshot.snapshot;
        let pieces = bytes.len().div_ceil(PIECE);
        let pieces = (0..pieces).map(move |piece| {
            let start = piece * PIECE;
            let end = bytes.len().min(start + PIECE);
            let payload = bytes[start..end].to_vec();
            RaftMessage { version: ENCODING, payload, ..RaftMessage::default() }
        });
        let messages = tokio_stream::iter(std::iter::once(head).chain(pieces));
        let mut request = Request::new(messages);
        request.set_timeout(option.hard_ttl());
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = client.install_snapshot(request) => match answer {
                Ok(response) => from_message(response.get_ref()).map_err(|e| streaming(&e)),
                Err(status) => Err(self.failed(&status).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let ttl = option.soft_ttl();
        self.call(RPCTypes::TransferLeader, ttl, &request, |mut client, message| async move {
            client.transfer_leader(message).await
        })
        .await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY)))
    }
}

fn network(failure: &io::Error) -> RpcError {
    RPCError::Network(NetworkError::new(failure))
}

fn streaming(failure: &io::Error) -> StreamingError<TypeConfig> {
    StreamingError::Network(NetworkError::new(failure))
}
