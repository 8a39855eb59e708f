//! The gRPC services: each hands what it is asked to the store, the loop or the leader.

pub mod caller;
mod control;
mod dispatcher;
mod leader;
mod raft;
pub mod status;
mod to_leader;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use shoal_api::control_server::ControlServer;
use shoal_api::dispatcher_server::DispatcherServer;
use shoal_api::leader_server::LeaderServer;
use shoal_api::membership_server::MembershipServer;
use shoal_api::raft_server::RaftServer;
use tokio::sync::watch;
use tonic::service::Routes;

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
    pub read_timeout: Duration,
    pub write_timeout: Duration,
}

impl Shared {
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

/// What the TCP server serves.
pub fn routes(shared: &Arc<Shared>) -> Routes {
    let raft = RaftServer::new(raft::RaftRpc(shared.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let control = ControlServer::new(control::ControlRpc(shared.clone()))
        .max_encoding_message_size(MAX_MESSAGE);
    // A node reports a thousand tasks at a time, each with what it has to say.
    let dispatcher = DispatcherServer::new(dispatcher::DispatcherRpc(shared.clone()))
        .max_decoding_message_size(MAX_MESSAGE);
    Routes::new(raft)
        .add_service(control)
        .add_service(dispatcher)
        .add_service(MembershipServer::new(leader::MembershipRpc(shared.clone())))
        .add_service(LeaderServer::new(leader::LeaderRpc(shared.clone())))
}

/// What the local socket serves.
pub fn local_routes(shared: &Arc<Shared>) -> Routes {
    let control = ControlServer::new(control::ControlRpc(shared.clone()))
        .max_encoding_message_size(MAX_MESSAGE);
    let local = caller::local(shared.node_id.clone());
    Routes::new(tonic::service::interceptor::InterceptedService::new(control, local))
}
