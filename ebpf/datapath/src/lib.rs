//! The datapath: what to do with one packet, and the bytes that kernel and user share.
//!
//! The same code runs in the kernel (bound to hooks and maps by `ebpf/programs`), in the test bed
//! and in `cargo test`: a packet is whatever implements [`Packet`], tables are whatever
//! implements [`Tables`]. One file per hook holds that hook's decisions:
//!
//! 1. [`ingress_xdp`] at the uplink: a packet for a remote task leaves at once in VXLAN.
//! 2. [`ingress_tc`] at the uplink: local tasks, and what XDP left over.
//! 3. [`mesh_tc`] at the VXLAN device: to a local task, or a reply on its way out.
//! 4. [`task_tc`] at a task's veth: a reply gets the frontend's address and goes back.
//!
//! No state but the tables, no clock, no randomness, no loop. The time to live stays as it is on
//! the whole way: the mesh stands in for the ingress node's own delivery, where no hop is counted,
//! and nothing can circle, because a packet out of a tunnel is never put into one again.
#![no_std]

pub mod abi;
pub mod checksum;
pub mod hash;
pub mod ingress;
mod ingress_tc;
mod ingress_xdp;
mod mesh_tc;
mod nat;
pub mod packet;
mod reason;
mod tables;
mod task_tc;
#[cfg(feature = "user")]
mod user;

pub use ingress_tc::ingress_tc;
pub use ingress_xdp::ingress_xdp;
pub use mesh_tc::mesh_tc;
pub use packet::{Frame, Packet, Skb, Tunnel, Verdict};
pub use reason::Reason;
pub use tables::{End, Tables};
pub use task_tc::task_tc;
