//! The cluster's nouns, their rules and their wire form.
//!
//! Objects are protobuf messages, as in `SwarmKit`: what the store keeps, what Raft replicates and
//! what goes over the wire is one type, and fields can be added without breaking an older peer.
//! This crate adds names, checks and small readings of them; it decides nothing and does no I/O.

mod cluster;
pub mod duration;
pub mod id;
mod nouns;
mod secrets;
pub mod time;
pub mod token;
pub mod validate;

/// The generated messages and services of `proto/shoal/v1`.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("shoal.v1");
}

pub use cluster::{ADDRESS_POOL, SUBNET_SIZE, TASK_HISTORY};
pub use nouns::DATA_PATH_PORT;
pub use v1::*;
