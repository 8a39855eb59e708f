//! The types that Raft is run with, and how they are written to disk and wire.
//!
//! A log entry carries one batch of changes. Raft's own part of a message is postcard, the batch
//! inside stays protobuf, so a newer release can add fields to objects. Everything that is stored
//! or sent starts with an encoding version; one that is not known is refused, not guessed.

use std::fmt;
use std::io;
use std::sync::Arc;

use openraft::impls::leader_id_std;
use prost::Message;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shoal_api::{Batch, Event, RaftMessage};

/// Version of the encoding of log entries and Raft messages.
pub const ENCODING: u32 = 1;

openraft::declare_raft_types!(
    /// Raft as the managers run it: one leader per term, tokio, no change of the defaults else.
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Peer,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

/// The Raft node with our state machine.
pub type Raft = openraft::Raft<TypeConfig, crate::state_machine::StateMachine>;
/// Term and index of an entry.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// What a member has voted for.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// One entry of the log.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// The members at some index.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// Who is a member.
pub type Membership = openraft::Membership<u64, Peer>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot: what it covers, and the bytes of its file.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Arc<Vec<u8>>>;

/// One member of the Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `host:port` of its gRPC server.
    pub addr: String,
}

/// What one log entry proposes.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal(pub Batch);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} changes", self.0.changes.len())
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.encode_to_vec())
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        Batch::decode(bytes).map(Self).map_err(D::Error::custom)
    }
}

/// What applying an entry gave; only the proposer's own process sees it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The entry's index.
    pub index: u64,
    /// What changed.
    #[serde(skip)]
    pub events: Arc<Vec<Event>>,
    /// Why the batch was refused; then nothing changed.
    #[serde(skip)]
    pub conflict: Option<String>,
}

/// Encodes a value with the version in front, for the disk.
///
/// # Errors
/// The value cannot be encoded.
pub fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let version = u8::try_from(ENCODING).expect("the version is a small number");
    postcard::to_extend(value, vec![version]).map_err(io::Error::other)
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// An unknown version, or damaged bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    match bytes.split_first() {
        Some((&version, payload)) if u32::from(version) == ENCODING => {
            postcard::from_bytes(payload).map_err(invalid)
        }
        Some((version, _)) => Err(invalid(format!("encoding {version} is not known here"))),
        None => Err(invalid("an empty record")),
    }
}

/// Encodes a value for another manager.
///
/// # Errors
/// The value cannot be encoded.
pub fn to_message<T: Serialize>(value: &T) -> io::Result<RaftMessage> {
    let payload = postcard::to_stdvec(value).map_err(io::Error::other)?;
    Ok(RaftMessage { version: ENCODING, payload, ..RaftMessage::default() })
}

/// Decodes what [`to_message`] wrote.
///
/// # Errors
/// An unknown version, or damaged bytes.
pub fn from_message<T: DeserializeOwned>(message: &RaftMessage) -> io::Result<T> {
    if message.version != ENCODING {
        return Err(invalid(format!("encoding {} is not known here", message.version)));
    }
    postcard::from_bytes(&message.payload).map_err(invalid)
}

/// Bytes that are not what they should be.
pub fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use shoal_api::Service;

    use super::*;

    fn entry() -> Entry {
        let service = Service { id: "s".into(), ..Service::default() };
        let batch = Batch { changes: vec![service.put()], now_ns: 7 };
        let log_id = LogId { leader_id: 3u64.into(), index: 9 };
        Entry { log_id, payload: openraft::EntryPayload::Normal(Proposal(batch)) }
    }

    #[test]
    fn an_entry_survives_disk_and_wire() {
        let entry = entry();
        assert_eq!(decode::<Entry>(&encode(&entry).unwrap()).unwrap(), entry);
        assert_eq!(from_message::<Entry>(&to_message(&entry).unwrap()).unwrap(), entry);
    }

    #[test]
    fn an_unknown_encoding_is_refused() {
        let mut bytes = encode(&entry()).unwrap();
        bytes[0] = 9;
        assert_eq!(decode::<Entry>(&bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut message = to_message(&entry()).unwrap();
        message.version = 9;
        assert!(from_message::<Entry>(&message).is_err());
    }

    /// Raft's messages as each release sent them. A rolling upgrade has managers of two releases:
    /// what one says the other must understand.
    #[test]
    fn bytes_of_every_release_are_the_messages_of_this_one() {
        use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};

        let log_id = |index| Some(LogId { leader_id: 3u64.into(), index });
        let nodes: std::collections::BTreeMap<_, _> =
            (1..=3).map(|id| (id, Peer { addr: format!("host{id}:2377") })).collect();
        let membership = Membership::new(vec![[1, 2, 3].into()], nodes).unwrap();
        let change = Entry {
            log_id: log_id(10).unwrap(),
            payload: openraft::EntryPayload::Membership(membership.clone()),
        };
        let append = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(3, 1),
            prev_log_id: log_id(8),
            entries: vec![entry(), change],
            leader_commit: log_id(8),
        };
        let appended = AppendEntriesResponse::<TypeConfig>::PartialSuccess(log_id(9));
        let vote = VoteRequest::<TypeConfig> {
            vote: Vote::new(4, 2),
            last_log_id: log_id(9),
            leadership_transfer: true,
        };
        let head = SnapshotMeta {
            last_log_id: log_id(9),
            last_membership: StoredMembership::new(log_id(7), membership),
        };
        check("append", &append);
        check("appended", &appended);
        check("vote", &vote);
        check("snapshot-head", &(Vote::new(3, 1), head));
    }

    fn check<T: Serialize + DeserializeOwned>(name: &str, value: &T) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/0.1");
        let path = folder.join(format!("raft-message-{name}.bin"));
        let ours = to_message(value).unwrap().encode_to_vec();
        if std::env::var_os("SHOAL_BLESS").is_some() {
            std::fs::write(&path, &ours).unwrap();
        }
        let kept = std::fs::read(&path).unwrap();
        let message = RaftMessage::decode(kept.as_slice()).unwrap();
        let read: T = from_message(&message).unwrap();
        assert_eq!(to_message(&read).unwrap().encode_to_vec(), ours, "{name} is read as it was");
        assert_eq!(kept, ours, "{name} is written as it was");
    }
}
