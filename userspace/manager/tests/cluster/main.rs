//! Managers in one process: real gRPC on loopback, real logs in temporary folders, real elections.
//! Each host has a runtime of its own, so that a killed one stops at once with all it served.

#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

mod addresses;
mod agent;
mod ca;
mod callers;
mod disk;
mod failover;
mod harness;
mod membership;
mod reads;
mod sessions;
mod strangers;
mod wire;
mod writes;
