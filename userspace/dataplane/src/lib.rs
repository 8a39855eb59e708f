//! Makes one node's kernel equal to a plan.
//!
//! [`Dataplane::load`] puts programs and maps into the kernel, pins them and attaches the programs;
//! [`shoal_routing::Lower`] writes plans and connects tasks; a task in the background keeps next
//! hops fresh. What is pinned forwards on without this process, and the next one takes it over:
//! only [`unload`] ends forwarding.
//!
//! Which backends and ports there are is decided above, what happens to a packet below.

mod addresses;
mod endpoints;
mod error;
mod interfaces;
mod links;
mod load;
mod lower;
mod neighbours;
mod net;
mod nodes;
mod options;
mod pins;
mod sys;
mod tables;
mod takeover;
mod unload;
mod vlan;

pub use error::{Error, LoadError};
pub use load::Dataplane;
pub use options::{Options, TcMode, XdpMode};
pub use unload::unload;
