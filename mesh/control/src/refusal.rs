//! Why a request is refused, in Docker's words where Docker has them.
//!
//! Texts: swarm.md §1.2, §1.3, §1.13. The mapping of a [`RefusalKind`] to a gRPC code is the
//! manager's.

use shoal_api::validate::Invalid;

/// What sort of refusal it is: whoever answers over a wire maps these to its own codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request is wrong, whatever the cluster's state.
    InvalidArgument,
    /// The object is not there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request is right and the cluster's state forbids it.
    FailedPrecondition,
    /// Somebody else wrote first; Docker answers 500 for it.
    OutOfSequence,
    /// A later release may do it.
    Unimplemented,
    /// Whoever asks may not do it, or is not who it says.
    PermissionDenied,
}

/// Why a request or a session is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The spec breaks a rule that needs no other object.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The request carries nothing that this release knows.
    #[error("the request is empty or of a newer release")]
    Empty,
    /// A node must come with an id.
    #[error("a node must present an id")]
    NoNodeId,
    /// The address is not one.
    #[error("invalid address {addr:?}: {expected}")]
    Address {
        /// As given.
        addr: String,
        /// What it must look like.
        expected: &'static str,
    },
    /// The ingress subnet cannot hold tasks.
    #[error("invalid subnet {subnet:?}: an IPv4 subnet of at most /29 is needed, like 10.0.0.0/24")]
    Subnet {
        /// As given.
        subnet: String,
    },
    /// There is no such object, or it is being removed.
    #[error("{what} {id} not found")]
    NotFound {
        /// `service`, `node`.
        what: &'static str,
        /// As the caller named it.
        id: String,
    },
    /// Another service has the name.
    #[error("name conflicts with an existing object: service {name} already exists")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Another service publishes the port.
    #[error("port '{port}' is already in use by service '{service}' ({id}) as an ingress port")]
    PortTaken {
        /// The published port.
        port: u32,
        /// Name of the service that has it.
        service: String,
        /// Its id.
        id: String,
    },
    /// The cluster itself lives on that port: published, it would be cut off from its own nodes.
    #[error(
        "port {port}/{protocol} is the cluster's own {what} port on node {node}: publish another"
    )]
    PortReserved {
        /// The port.
        port: u32,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// `manager`, `data path`.
        what: &'static str,
        /// Host name or id of a node that uses it.
        node: String,
    },
    /// The joining node would live on a port that a service publishes.
    #[error(
        "port {port}/{protocol} of the joining node is published by service '{service}': choose \
         another, or remove the service"
    )]
    PortPublished {
        /// The port.
        port: u32,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// Name of the service that has it.
        service: String,
    },
    /// Packets between nodes go to one port.
    #[error("the data path port of this cluster is {cluster}, not {port}: use the same")]
    DataPathPort {
        /// The joining node's.
        port: u32,
        /// The cluster's.
        cluster: u32,
    },
    /// Every port that the allocator may choose is taken.
    #[error(
        "no published port is free in {first}-{last}/{protocol}: name one, or remove a service"
    )]
    NoPortFree {
        /// First of the range.
        first: u32,
        /// Last of the range.
        last: u32,
        /// `tcp` or `udp`.
        protocol: &'static str,
    },
    /// All numbers of a kind are taken.
    #[error("the cluster has its most {what}: {most}")]
    Full {
        /// `services`, `nodes`.
        what: &'static str,
        /// How many there can be.
        most: u32,
    },
    /// The object was written since the caller read it.
    #[error("update out of sequence")]
    OutOfSequence,
    /// A service keeps its name.
    #[error("renaming services is not supported")]
    Rename,
    /// The token is none of the cluster's: wrong, rotated away, malformed, or another cluster's.
    #[error("invalid join token")]
    Token,
    /// The node was removed from the cluster.
    #[error("node {id} was removed from the swarm: leave and join again to be a new node")]
    Removed {
        /// The node.
        id: String,
    },
    /// Without it nobody could manage the cluster.
    #[error("attempting to demote the last manager of the swarm")]
    LastManager,
    /// As [`Refusal::LastManager`], for a manager that leaves by itself.
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. \
         Removing the last manager erases all current state of the swarm. Use `--force` to ignore \
         this message."
    )]
    LastManagerLeaves,
    /// Too few of the managers that are left answer.
    #[error("can't remove member from the raft: this would result in a loss of quorum")]
    LossOfQuorum,
    /// Its demotion must end first, for an id in Raft is not used again.
    #[error("node {id} is still being demoted: promote it when it is a worker")]
    StillDemoting {
        /// The node.
        id: String,
    },
    /// The other managers could not reach it.
    #[error("node {id} has not told its address yet: promote it when it is ready")]
    NoAddr {
        /// The node.
        id: String,
    },
    /// It must be demoted first.
    #[error(
        "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to \
         worker before removal"
    )]
    IsManager {
        /// The node.
        id: String,
    },
    /// It may still run tasks.
    #[error("node {id} is not down and can't be removed")]
    NotDown {
        /// The node.
        id: String,
    },
    /// That manager has no such id in Raft.
    #[error("can't find manager in raft memberlist")]
    NotInRaft,
    /// A founder brings one without the other.
    #[error("an unlock key goes with autolock, and autolock with an unlock key")]
    UnlockKey,
    /// There is no unlock key to rotate.
    #[error("cannot rotate because autolock is not turned on")]
    NoAutolock,
    /// A root was given, and nothing says to roll over to it.
    #[error("a new root CA takes a rotation: raise force_rotate with it")]
    RootNotForced,
    /// Nobody could sign certificates any more.
    #[error(
        "there must be at least one valid, reachable external CA corresponding to the root CA \
         certificate, since its key is not given"
    )]
    NoSigner,
    /// There is no cluster to join.
    #[error("this node is not part of a swarm: use \"shoal init\" first")]
    NoCluster,
    /// Tasks have no network to get an address from.
    #[error("service needs ingress network, but no ingress network is present")]
    NoIngressNetwork,
    /// The session is unknown here: the node must open a new one.
    #[error("session {session_id} is not open")]
    NoSession {
        /// As the node named it.
        session_id: String,
    },
    /// Who asks is not the session's node.
    #[error("session {session_id} belongs to another node")]
    OthersSession {
        /// The session.
        session_id: String,
    },
    /// A certificate speaks for its own node only.
    #[error("a certificate of node {caller:?} cannot open a session of node {id:?}")]
    OtherNode {
        /// The certificate's.
        caller: String,
        /// The session's.
        id: String,
    },
    /// The node left by itself.
    #[error("node {id} left the swarm")]
    Left {
        /// The node.
        id: String,
    },
    /// The node's state directory was copied, and the first one's daemon lives.
    #[error(
        "node {id} runs twice, and this daemon uses the copy of its state: remove the state \
         directory and join as a new node"
    )]
    Copy {
        /// The node.
        id: String,
    },
    /// The node opened a newer session.
    #[error("session {session_id} was replaced by a newer one of the same node")]
    Replaced {
        /// The older session.
        session_id: String,
    },
    /// The node was silent for too long.
    #[error("session {session_id} expired: no heartbeat for {silent_ms} ms")]
    Expired {
        /// The session.
        session_id: String,
        /// How long the node was silent.
        silent_ms: u64,
    },
}

impl Refusal {
    /// What sort of refusal it is.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Invalid(_)
            | Self::Empty
            | Self::NoNodeId
            | Self::Address { .. }
            | Self::Subnet { .. }
            | Self::PortTaken { .. }
            | Self::PortReserved { .. }
            | Self::UnlockKey
            | Self::RootNotForced
            | Self::NoSigner => RefusalKind::InvalidArgument,
            Self::NotFound { .. } | Self::NotInRaft => RefusalKind::NotFound,
            Self::NameTaken { .. } => RefusalKind::AlreadyExists,
            Self::NoPortFree { .. }
            | Self::PortPublished { .. }
            | Self::DataPathPort { .. }
            | Self::Full { .. }
            | Self::NoCluster
            | Self::NoIngressNetwork
            | Self::NoSession { .. }
            | Self::Replaced { .. }
            | Self::Expired { .. }
            | Self::Left { .. }
            | Self::LastManager
            | Self::LastManagerLeaves
            | Self::LossOfQuorum
            | Self::StillDemoting { .. }
            | Self::NoAddr { .. }
            | Self::IsManager { .. }
            | Self::NotDown { .. }
            | Self::NoAutolock => RefusalKind::FailedPrecondition,
            Self::OutOfSequence => RefusalKind::OutOfSequence,
            Self::Rename => RefusalKind::Unimplemented,
            Self::Token
            | Self::Removed { .. }
            | Self::Copy { .. }
            | Self::OtherNode { .. }
            | Self::OthersSession { .. } => RefusalKind::PermissionDenied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(refusal: &Refusal, kind: RefusalKind, text: &str) {
        assert_eq!((refusal.kind(), refusal.to_string().as_str()), (kind, text));
    }

    #[test]
    fn texts_are_dockers() {
        check(
            &Refusal::NameTaken { name: "web".into() },
            RefusalKind::AlreadyExists,
            "name conflicts with an existing object: service web already exists",
        );
        let taken = Refusal::PortTaken { port: 80, service: "web".into(), id: "x1".into() };
        check(
            &taken,
            RefusalKind::InvalidArgument,
            "port '80' is already in use by service 'web' (x1) as an ingress port",
        );
        check(&Refusal::OutOfSequence, RefusalKind::OutOfSequence, "update out of sequence");
        let missing = Refusal::NotFound { what: "service", id: "web".into() };
        check(&missing, RefusalKind::NotFound, "service web not found");
    }
}
