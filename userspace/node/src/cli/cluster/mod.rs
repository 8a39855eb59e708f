//! Verbs about the cluster as a whole: begin, join, leave, its tokens, keys, root and settings.
//!
//! One file per verb. [`addrs`], [`spec`] and [`pem`] read what several of them are told;
//! [`change`] is the one way that a cluster's settings are written.

mod addrs;
pub mod backup;
pub mod ca;
mod change;
pub mod init;
pub mod join;
pub mod join_token;
mod key;
pub mod leave;
mod pem;
pub mod restore;
mod rotation;
mod spec;
pub mod tls;
pub mod unlock;
pub mod unlock_key;
pub mod update;

use clap::ValueEnum;
use shoal_api::{Cluster, NodeAvailability};

/// What a node may do; upper case is fine, as with Docker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Availability {
    /// Takes tasks.
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Gives its tasks away.
    Drain,
}

impl Availability {
    /// Reads the word.
    ///
    /// # Errors
    /// Another word, in Docker's sentence.
    pub fn parse(word: &str) -> Result<Self, String> {
        Self::from_str(word, true).map_err(|_| {
            format!("invalid availability {word:?}, only active, pause and drain are supported")
        })
    }
}

impl From<Availability> for NodeAvailability {
    fn from(availability: Availability) -> Self {
        match availability {
            Availability::Active => Self::Active,
            Availability::Pause => Self::Pause,
            Availability::Drain => Self::Drain,
        }
    }
}

/// What newcomers of a role present; empty when the cluster has none.
fn token(cluster: &Cluster, manager: bool) -> &str {
    let tokens = cluster.root_ca.as_ref().and_then(|root_ca| root_ca.tokens.as_ref());
    tokens.map_or("", |tokens| if manager { &tokens.manager } else { &tokens.worker })
}
