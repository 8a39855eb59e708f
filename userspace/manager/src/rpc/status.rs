//! Which gRPC status says what went wrong; no other file maps errors to codes.

use std::error::Error as _;
use std::io;

use shoal_control::{Refusal, RefusalKind};
use shoal_identity::CsrError;
use shoal_identity::ca::CaError;
use shoal_transport::Stale;
use tonic::{Code, Status};

use crate::events::TooOld;

/// Where the leader is, in the metadata of a follower's refusal. Empty when nobody leads.
pub const LEADER: &str = "shoal-leader";

const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are \
    online. Make sure more than half of the managers are online.";

/// The control plane refused a write.
pub fn refused(refusal: &Refusal) -> Status {
    let code = match refusal.kind() {
        RefusalKind::InvalidArgument => Code::InvalidArgument,
        RefusalKind::NotFound => Code::NotFound,
        RefusalKind::AlreadyExists => Code::AlreadyExists,
        RefusalKind::FailedPrecondition => Code::FailedPrecondition,
        RefusalKind::OutOfSequence => Code::Aborted,
        RefusalKind::Unimplemented => Code::Unimplemented,
        RefusalKind::PermissionDenied => Code::PermissionDenied,
    };
    Status::new(code, refusal.to_string())
}

/// There is no leader, or none with a quorum behind it.
pub fn no_leader() -> Status {
    Status::unavailable(NO_LEADER)
}

/// This manager's disk takes no writes.
pub fn disk(trouble: &str) -> Status {
    Status::unavailable(format!("this manager cannot write to its disk: {trouble}"))
}

/// The leader was lost after it had taken the write.
pub fn unknown_outcome() -> Status {
    Status::unavailable(
        "the leader was lost during the write; look whether it took effect before trying again",
    )
}

/// The leader took the write and no quorum has stored it in time.
pub fn unconfirmed() -> Status {
    Status::unavailable(
        "the write was not confirmed in time, too few managers may be online; look whether it \
         took effect before trying again",
    )
}

/// Ask there.
pub fn not_leader(leader: &str) -> Status {
    let text = if leader.is_empty() {
        NO_LEADER.to_owned()
    } else {
        format!("this manager does not lead; the leader is at {leader}")
    };
    let mut status = Status::failed_precondition(text);
    if let Ok(leader) = leader.parse() {
        status.metadata_mut().insert(LEADER, leader);
    }
    status
}

/// Whether a peer's answer means that it does not lead and did nothing.
pub fn is_not_leader(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.metadata().contains_key(LEADER)
}

/// Whether a call failed before anything was sent.
pub fn was_not_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// No such session here: the agent opens a new one.
pub fn no_session() -> Status {
    Status::not_found("the session is not known, open a new one")
}

/// The watcher must read everything anew.
pub fn too_old(reason: &TooOld) -> Status {
    Status::out_of_range(reason.to_string())
}

/// A peer's message cannot be understood.
pub fn bad_message(reason: &io::Error) -> Status {
    Status::invalid_argument(reason.to_string())
}

/// A Raft message for the manager that was at this address before.
pub fn another_manager(wanted: u64, own: u64) -> Status {
    Status::failed_precondition(format!("this is manager {own}, not {wanted}"))
}

/// A message or certificate of another cluster.
pub fn another_cluster(sender: &str, own: &str) -> Status {
    Status::permission_denied(format!("this manager is of cluster {own}, not {sender}"))
}

/// All but the first certificate needs one.
pub fn no_certificate() -> Status {
    Status::unauthenticated("a certificate of this swarm is required: join it first")
}

/// It was a member once.
pub fn removed(node_id: &str) -> Status {
    Status::permission_denied(format!("node {node_id} was removed from the swarm"))
}

/// Nobody knows it.
pub fn not_a_member(node_id: &str) -> Status {
    Status::permission_denied(format!("node {node_id} is not a member of the swarm"))
}

/// It may not ask this.
pub fn not_a_manager(node_id: &str) -> Status {
    Status::permission_denied(format!("node {node_id} is not a manager of the swarm"))
}

/// A session belongs to the node that opened it.
pub fn another_node(caller: &str, node_id: &str) -> Status {
    Status::permission_denied(format!("node {caller} may not act for node {node_id}"))
}

/// A Raft id that was given to another node.
pub fn another_raft_id(node_id: &str, raft_id: u64) -> Status {
    Status::permission_denied(format!("node {node_id} is not manager {raft_id}"))
}

/// A Raft id that nobody has any more.
pub fn removed_raft_id(raft_id: u64) -> Status {
    Status::permission_denied(format!("manager {raft_id} was removed from the swarm"))
}

/// A Raft id that this manager, which has a leader, has never heard of.
pub fn unknown_raft_id(raft_id: u64) -> Status {
    Status::permission_denied(format!("manager {raft_id} is not known in the swarm"))
}

/// The certificate of the connection was good when the connection was made.
pub fn stale(reason: &Stale) -> Status {
    Status::unauthenticated(reason.to_string())
}

/// Whether a peer wants a new connection: it did nothing.
pub fn wants_new_connection(status: &Status) -> bool {
    status.code() == Code::Unauthenticated
}

/// A node's id belongs to its key.
pub fn another_key(wanted: &str, own: &str) -> Status {
    Status::permission_denied(format!("the key in the request is of node {own}, not of {wanted}"))
}

/// Not a request for a certificate.
pub fn bad_request(reason: &CsrError) -> Status {
    Status::invalid_argument(reason.to_string())
}

/// A root that the cluster cannot roll over to.
pub fn bad_root(reason: &CaError) -> Status {
    match reason {
        CaError::NoKey | CaError::Unlinked => Status::failed_precondition(reason.to_string()),
        _ => Status::invalid_argument(reason.to_string()),
    }
}

/// The certificate could not be signed; asking again may help.
pub fn no_signature(reason: &dyn std::error::Error) -> Status {
    Status::unavailable(format!("the certificate could not be signed: {reason}"))
}

/// More than one manager takes in at a time.
pub fn busy(what: &str) -> Status {
    Status::resource_exhausted(format!("this manager takes in no more {what} now"))
}

/// A stream that does not go on.
pub fn stalled(what: &str) -> Status {
    Status::deadline_exceeded(format!("{what} did not go on"))
}

/// The Raft node has stopped.
pub fn stopped(reason: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this manager has stopped: {reason}"))
}

/// The answer is not one to the question.
pub fn unexpected() -> Status {
    Status::internal("the leader gave an answer of another kind")
}
