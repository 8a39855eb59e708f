//! Doors for `tests/fuzz`: readers of bytes that nobody else needs to call, on any bytes.
//!
//! Each function panics when something is wrong. Compiled with the feature `fuzzing` only.

use std::fmt::Debug;

use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use prost::Message as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_api::{Batch, Cluster, RaftMessage};
use shoal_control::Store;

use crate::snapshot as file;
use crate::types::{
    Entry, LogId, Proposal, SnapshotMeta, TypeConfig, Vote, decode, encode, from_message,
    to_message,
};

/// Reads bytes as the message that arrives at one of Raft's calls, or as its answer.
///
/// # Panics
/// What was read cannot be written and read again.
pub fn raft_message(kind: u8, bytes: &[u8]) {
    let Ok(message) = RaftMessage::decode(bytes) else { return };
    match kind {
        0 => again::<AppendEntriesRequest<TypeConfig>>(&message),
        1 => again::<VoteRequest<TypeConfig>>(&message),
        2 => again::<TransferLeaderRequest<TypeConfig>>(&message),
        3 => again::<(Vote, SnapshotMeta)>(&message),
        4 => again::<AppendEntriesResponse<TypeConfig>>(&message),
        _ => again::<VoteResponse<TypeConfig>>(&message),
    }
}

fn again<T: DeserializeOwned + Serialize + Debug>(message: &RaftMessage) {
    if let Ok(value) = from_message::<T>(message) {
        let written = to_message(&value).expect("what was read can be written");
        let read: T = from_message(&written).expect("what was written can be read");
        assert_eq!(format!("{read:?}"), format!("{value:?}"));
    }
}

/// Reads bytes as an entry of the log on the disk.
///
/// # Panics
/// What was read cannot be written and read again.
pub fn log_record(bytes: &[u8]) {
    if let Ok(entry) = decode::<Entry>(bytes) {
        let written = encode(&entry).expect("what was read can be written");
        let read: Entry = decode(&written).expect("what was written can be read");
        assert_eq!(format!("{read:?}"), format!("{entry:?}"));
    }
}

/// Reads bytes as a snapshot and takes its objects in.
///
/// # Panics
/// What was read cannot be written and read again.
pub fn snapshot(bytes: &[u8]) {
    if let Ok((meta, store)) = file::decode(bytes) {
        let written = file::encode(&meta, &store).expect("what was read can be written");
        let (again, store) = file::decode(&written).expect("what was written can be read");
        assert_eq!(again, meta);
        let twice = file::encode(&meta, &store).expect("what was read can be written");
        assert_eq!(twice, written);
    }
}

/// A snapshot of a cluster with that id.
///
/// # Panics
/// Never: a small snapshot can be written.
#[must_use]
pub fn a_snapshot(cluster_id: &str) -> Vec<u8> {
    let cluster = Cluster { id: cluster_id.to_owned(), ..Cluster::default() };
    let objects = vec![cluster.into()];
    let store = Store::restore(shoal_api::Snapshot { index: 7, objects });
    let meta = SnapshotMeta { last_log_id: Some(log_id()), ..SnapshotMeta::default() };
    file::encode(&meta, &store).expect("a small snapshot can be written")
}

/// Good messages, each with its kind for [`raft_message`], and 16 with one for [`log_record`].
///
/// # Panics
/// Never: small messages can be written.
#[must_use]
pub fn raft_seeds() -> Vec<(u8, Vec<u8>)> {
    let service = shoal_api::Service { id: "s".into(), ..Default::default() };
    let batch = Batch { changes: vec![service.put()], now_ns: 7 };
    let entry = Entry { log_id: log_id(), payload: EntryPayload::Normal(Proposal(batch)) };
    let vote = Vote::new(3, 1);
    let append = AppendEntriesRequest::<TypeConfig> {
        vote,
        prev_log_id: Some(log_id()),
        entries: vec![entry.clone()],
        leader_commit: None,
    };
    let message = |message: Result<RaftMessage, std::io::Error>| {
        message.expect("a small message can be written").encode_to_vec()
    };
    vec![
        (0, message(to_message(&append))),
        (1, message(to_message(&VoteRequest::<TypeConfig>::new(vote, Some(log_id()))))),
        (3, message(to_message(&(vote, SnapshotMeta::default())))),
        (16, encode(&entry).expect("a small entry can be written")),
    ]
}

fn log_id() -> LogId {
    LogId { leader_id: 3u64.into(), index: 9 }
}
