//! Whether a node lives, by its last sign of life and the period that it was told.

use std::time::Duration;

use shoal_api::duration::{HEARTBEAT_PERIOD, HEARTBEATS_MISSED};
use shoal_api::time::Timestamp;
use shoal_api::{Node, NodeState};

use crate::store::Store;

/// A node that is down for so long will not come back with its tasks: they are given up.
pub(crate) const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What is known of a node's life.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pulse {
    /// When it is down unless there is another sign of life.
    Alive {
        /// Last sign of life.
        seen: Timestamp,
        /// How long the node may be silent: by the period that it was told then.
        patience: Duration,
    },
    /// Its tasks are given up at that instant, if it has any.
    Down(Option<Timestamp>),
}

impl Pulse {
    /// Alive now, with the patience that a node deserves which was told that period.
    pub(crate) fn alive(store: &Store, seen: Timestamp) -> Self {
        let period = store.cluster().map_or(HEARTBEAT_PERIOD, |cluster| cluster.heartbeat_period());
        Self::Alive { seen, patience: period.saturating_mul(HEARTBEATS_MISSED) }
    }

    /// What to expect of a node: one that the store has as down stays so until it opens a session.
    pub(crate) fn of(store: &Store, node: &Node, seen: Timestamp, now: Timestamp) -> Self {
        if node.state() == NodeState::Down {
            let since = node.meta.as_ref().map_or(now, |meta| Timestamp(meta.updated_at_ns));
            Self::Down(Some(since + ORPHANED_AFTER))
        } else {
            Self::alive(store, seen)
        }
    }
}
