//! What the disk brings back, what it must not show, and the ways back when managers are lost: whole
//! managers on loopback, as in `tests/cluster`.

#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

mod fixtures;
mod full_disk;
#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "shared with the tests of the cluster, which use the rest")]
mod harness;
mod keys;
mod recovery;
#[path = "../cluster/wire.rs"]
#[allow(dead_code, reason = "shared with the tests of the cluster, which use the rest")]
mod wire;
