//! From endpoints to the tables that one node's kernel must hold.
//!
//! Assignments come in, a [`Plan`] comes out; [`diff`](diff::diff) says which steps make the kernel
//! equal to it, in an order in which no packet sees a frontend without backends. The kernel itself
//! is behind [`Lower`], which `userspace/dataplane` implements. Nothing here does I/O.

pub mod diff;
pub mod lower;
pub mod plan;
pub mod ring;

pub use diff::Step;
pub use lower::{Lower, TaskLink, TaskPort};
pub use plan::{Gap, Plan, Problem, State};
