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
    /// A node keeps the role that it joined with.
    #[error("changing the role of a node is not supported yet: leave and join again as {wanted}")]
    RoleChange {
        /// `manager` or `worker`.
        wanted: &'static str,
    },
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
            | Self::PortReserved { .. } => RefusalKind::InvalidArgument,
            Self::NotFound { .. } => RefusalKind::NotFound,
            Self::NameTaken { .. } => RefusalKind::AlreadyExists,
            Self::NoPortFree { .. }
            | Self::PortPublished { .. }
            | Self::DataPathPort { .. }
            | Self::Full { .. }
            | Self::NoCluster
            | Self::NoIngressNetwork
            | Self::NoSession { .. }
            | Self::Replaced { .. }
            | Self::Expired { .. } => RefusalKind::FailedPrecondition,
            Self::OutOfSequence => RefusalKind::OutOfSequence,
            Self::Rename | Self::RoleChange { .. } => RefusalKind::Unimplemented,
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
