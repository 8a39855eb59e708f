//! A manager: replicates the store, runs the control plane while it leads, answers gRPC.
//!
//! [`Manager`] is one process's member of the Raft group, started by [`Manager::init`] (a new
//! cluster), [`Manager::join`] or [`Manager::restart`]. It opens no socket: whoever runs it serves
//! [`Manager::services`] at the advertised address and [`Manager::local_services`] on the machine's
//! own socket. What the cluster should do is decided in `shoal_control`; nothing here is policy.

mod address_book;
mod announce;
pub mod backup;
mod compaction;
mod config;
mod error;
mod events;
mod external_ca;
mod files;
mod force;
mod founding;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod identity;
mod keeper;
mod leader;
mod log_store;
mod manager;
mod members;
mod network;
mod rpc;
mod snapshot;
mod state_machine;
mod types;
mod vault;

pub use config::{Config, Timings};
pub use error::ManagerError;
pub use founding::{Founding, NewCluster};
pub use manager::{Manager, has_state};
pub use rpc::status::LEADER;
pub use vault::{Vault, VaultError, is_locked as vault_is_locked};
