//! Which gRPC status says what went wrong; no other file maps errors to codes.

use std::io;

use shoal_control::{Refusal, RefusalKind};
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

/// A Raft message of another cluster's manager.
pub fn another_cluster(sender: &str, own: &str) -> Status {
    Status::failed_precondition(format!("this manager is of cluster {own}, not {sender}"))
}

/// The Raft node has stopped.
pub fn stopped(reason: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this manager has stopped: {reason}"))
}

/// The answer is not one to the question.
pub fn unexpected() -> Status {
    Status::internal("the leader gave an answer of another kind")
}
