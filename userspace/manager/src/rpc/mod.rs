//! The gRPC services: each hands what it is asked to the store, the loop or the leader.

mod ca;
mod caller;
mod control;
mod dispatcher;
mod leader;
pub mod raft;
mod serve;
pub mod status;
pub mod to_leader;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use shoal_api::ca_server::CaServer;
use shoal_api::control_server::ControlServer;
use shoal_api::dispatcher_server::DispatcherServer;
use shoal_api::leader_server::LeaderServer;
use shoal_api::raft_server::RaftServer;
use shoal_api::{Caller, NodeRole, Write, WriteResult, write};
use shoal_transport::Credentials;
use tokio::sync::{Semaphore, watch};
use tonic::Status;
use tonic::service::Routes;

use crate::address_book::AddressBook;
use crate::leader::{Desk, LastHeard};
use crate::network::MAX_MESSAGE;
use crate::state_machine::View;
use crate::types::Raft;

/// What the services share.
pub struct Shared {
    pub raft: Raft,
    pub raft_id: u64,
    pub node_id: String,
    pub view: Arc<View>,
    /// Why the disk refuses writes.
    pub disk: watch::Receiver<Option<String>>,
    pub desk: Desk,
    pub last_heard: LastHeard,
    /// This node's certificate.
    pub credentials: Credentials,
    /// Where the managers are.
    pub book: Arc<AddressBook>,
    /// To the leader.
    pub line: to_leader::Line,
    /// Snapshots that may be taken in at once.
    pub snapshots: Semaphore,
    pub read_timeout: Duration,
    pub write_timeout: Duration,
    /// How long a leader counts a manager's answer.
    pub lease: Duration,
}

impl Shared {
    /// Whether this manager leads or was just led by another than this Raft member: its store then
    /// has all that happened but for the last moment.
    fn has_leader_beside(&self, raft_id: u64) -> bool {
        self.desk.is_open() || self.last_heard.another_within(raft_id, self.lease)
    }

    /// Node id of a Raft member.
    fn node_of(&self, raft_id: u64) -> Option<String> {
        let store = self.view.store();
        let is_it = |node: &&Arc<shoal_api::Node>| {
            node.manager.as_ref().is_some_and(|manager| manager.raft_id == raft_id)
        };
        store.nodes().find(is_it).map(|node| node.id.clone())
    }
}

/// `host:port` of the leader, as far as this manager knows.
pub fn leader_addr(shared: &Shared) -> Option<String> {
    to_leader::leader(shared).map(|(_, addr)| addr)
}

/// A write of this manager in its own name.
pub async fn write(shared: &Shared, kind: write::Write) -> Result<WriteResult, Status> {
    let caller = Caller { node_id: shared.node_id.clone(), role: NodeRole::Manager.into() };
    to_leader::write(shared, caller, Write { write: Some(kind) }).await
}

/// Node ids of the managers that the leader reaches.
pub async fn reachable(shared: &Shared) -> Result<Vec<String>, Status> {
    let caught = to_leader::catch_up(shared).await?;
    Ok(caught.reachable.into_iter().filter_map(|raft_id| shared.node_of(raft_id)).collect())
}

/// What the TCP server serves.
pub fn routes(shared: &Arc<Shared>) -> Routes {
    let raft = RaftServer::new(raft::RaftRpc(shared.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let control = ControlServer::new(control::ControlRpc(shared.clone()))
        .max_encoding_message_size(MAX_MESSAGE);
    // An agent's largest report fits in gRPC's usual 4 MiB; what a worker may send is held in memory.
    let dispatcher = DispatcherServer::new(dispatcher::DispatcherRpc(shared.clone()));
    Routes::new(raft)
        .add_service(control)
        .add_service(dispatcher)
        .add_service(CaServer::new(ca::CaRpc(shared.clone())))
        .add_service(LeaderServer::new(leader::LeaderRpc(shared.clone())))
}

/// What the local socket serves.
pub fn local_routes(shared: &Arc<Shared>) -> Routes {
    let control = ControlServer::new(control::ControlRpc(shared.clone()))
        .max_encoding_message_size(MAX_MESSAGE);
    let local = caller::local(shared.node_id.clone());
    Routes::new(tonic::service::interceptor::InterceptedService::new(control, local))
}
