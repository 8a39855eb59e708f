//! The types that Raft is run with here: those of the manager, on the simulated runtime.
//!
//! Entries are written to the disk and sent as bytes in the manager's encoding (a version, postcard,
//! the batch as protobuf inside), so that what a crash leaves is what is read again. Beside the batch
//! a proposal says in which term the leader's loop made it, for the invariants alone.

use std::fmt;
use std::io;
use std::sync::Arc;

use openraft::impls::leader_id_std;
use openraft_rt_sim::SimRuntime;
use prost::Message;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shoal_api::Batch;

/// Version of the encoding.
const ENCODING: u8 = 1;

openraft::declare_raft_types!(
    /// Raft under virtual time.
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Peer,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = SimRuntime,
);

pub(super) type Raft = openraft::Raft<TypeConfig, super::machine::StateMachine>;
pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Arc<Vec<u8>>>;

/// One member of the Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `h<host>:2377`.
    pub addr: String,
}

impl Peer {
    pub(super) fn of_host(host: u32) -> Self {
        Self { addr: format!("h{host}:2377") }
    }

    /// Number of the host; 0 for an address that is none here.
    pub(super) fn host(&self) -> u32 {
        let number = self.addr.strip_prefix('h').and_then(|rest| rest.split_once(':'));
        number.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
    }
}

/// What one log entry proposes.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The changes.
    pub batch: Arc<Batch>,
    /// Term of the leader's loop that made them.
    pub term: u64,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} changes", self.batch.changes.len())
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = self.term.to_le_bytes().to_vec();
        bytes.extend(self.batch.encode_to_vec());
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        let short = || D::Error::custom("a proposal without a term");
        let (term, batch) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let batch = Batch::decode(batch).map_err(D::Error::custom)?;
        Ok(Self { batch: Arc::new(batch), term: u64::from_le_bytes(*term) })
    }
}

/// What applying an entry gave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The entry's index.
    pub index: u64,
    /// Why the batch was refused; then nothing changed.
    pub conflict: Option<String>,
}

pub(super) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_extend(value, vec![ENCODING]).map_err(io::Error::other)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    match bytes.split_first() {
        Some((&ENCODING, payload)) => postcard::from_bytes(payload).map_err(invalid),
        _ => Err(invalid("an unknown encoding")),
    }
}

pub(super) fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(super) fn term_of(log_id: &LogId) -> u64 {
    **log_id.committed_leader_id()
}
