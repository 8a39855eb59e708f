//! From objects and events to the next changes.
//!
//! [`Store`] keeps the cluster's objects and changes by [`Store::apply`] only. [`Control`] is all that
//! a leader decides: members, requests, addresses, slots, nodes, sessions. Its roles each do one thing, in a
//! fixed order, over one draft of the next batch, so a new service usually gives one batch:
//! service, ports, tasks, addresses and nodes. Nothing here sleeps, spawns, reads a clock or draws
//! randomness: `now` and the seed are arguments, and the same inputs give the same batches.
//!
//! The leader's loop: collect inputs, [`Control::step`], propose the batch, report its outcome
//! ([`Control::committed`] or [`Control::lost`]), answer, send [`Control::assignments`] and
//! [`Control::standings`]; again when something comes in or [`Control::deadline`] passes.

mod allocator;
mod assignments;
mod ca;
mod cluster;
mod control;
mod dispatcher;
mod draft;
mod founding;
mod instances;
mod membership;
mod orphans;
mod pulse;
mod reaper;
mod refusal;
mod registry;
mod replicated;
mod requests;
mod scheduler;
mod standing;
mod store;

pub use control::{Answer, Control, Input, Step};
pub use founding::Founding;
pub use refusal::{Refusal, RefusalKind};
pub use standing::Standing;
pub use store::{Claim, Conflict, Store};

#[cfg(test)]
mod tests;
