//! Makes snapshots and lets go of the log behind them, as the cluster's spec says.
//!
//! Raft's own policy is fixed when it starts, and the spec can change at any time: so its policy is
//! off, and this task asks it for each snapshot and purge. It runs on every manager; where a disk
//! refuses a snapshot the log only grows.

use std::sync::Arc;

use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use shoal_control::Store;
use tracing::{debug, warn};

use crate::state_machine::View;
use crate::types::{Raft, TypeConfig};

/// Entries that are let go of at once: one purge writes to the disk; not one for every entry.
const PURGED_AT_ONCE: u64 = 64;

/// How much log a manager keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries between two snapshots.
    pub interval: u64,
    /// Entries kept behind a snapshot, so that a follower that was away for a moment gets entries
    /// and not everything.
    pub kept: u64,
}

impl Limits {
    /// What the cluster's spec says, and `self` where it says nothing.
    fn of(self, store: &Store) -> Self {
        let spec = store.cluster().and_then(|cluster| cluster.spec.as_ref()?.raft);
        let spec = spec.unwrap_or_default();
        Self {
            // Never at each entry, whatever was stored.
            interval: spec.snapshot_interval.unwrap_or(self.interval).max(1),
            kept: spec.log_entries_for_slow_followers.unwrap_or(self.kept),
        }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Snapshot,
    /// Up to this index.
    Purge(u64),
}

/// Runs until Raft ends.
pub async fn run(raft: Raft, view: Arc<View>, usual: Limits) {
    let mut metrics = raft.metrics();
    let mut asked = None;
    loop {
        let (due, applied) = {
            let now = metrics.borrow_and_update();
            (due(&now, usual.of(&view.store())), index(now.last_applied.as_ref()))
        };
        // A snapshot that is being made is not asked for again before it would be due anew.
        let again = |asked: u64| applied >= asked + usual.of(&view.store()).interval;
        let done = match due {
            Some(Due::Snapshot) if asked.is_none_or(again) => {
                asked = Some(applied);
                raft.trigger().snapshot().await
            }
            Some(Due::Purge(upto)) => {
                debug!(upto, "entries are let go of");
                raft.trigger().purge_log(upto).await
            }
            _ => Ok(()),
        };
        if let Err(ended) = done {
            warn!(%ended, "Raft has stopped");
            return;
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn index(log_id: Option<&crate::types::LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index)
}

fn due(metrics: &RaftMetrics<TypeConfig>, limits: Limits) -> Option<Due> {
    let [applied, snapshot, purged] =
        [&metrics.last_applied, &metrics.snapshot, &metrics.purged].map(|at| index(at.as_ref()));
    decide(applied, snapshot, purged, limits)
}

fn decide(applied: u64, snapshot: u64, purged: u64, limits: Limits) -> Option<Due> {
    let upto = snapshot.saturating_sub(limits.kept);
    if upto >= purged + PURGED_AT_ONCE.min(limits.interval) {
        return Some(Due::Purge(upto));
    }
    (applied >= snapshot.saturating_add(limits.interval)).then_some(Due::Snapshot)
}

#[cfg(test)]
mod tests {
    use shoal_api::{Batch, Cluster, ClusterSpec, RaftSpec};

    use super::*;

    const USUAL: Limits = Limits { interval: 100, kept: 10 };

    #[test]
    fn a_snapshot_is_due_after_the_interval_and_the_log_behind_it_goes() {
        assert_eq!(decide(99, 0, 0, USUAL), None);
        assert_eq!(decide(100, 0, 0, USUAL), Some(Due::Snapshot));
        assert_eq!(decide(100, 100, 0, USUAL), Some(Due::Purge(90)));
        assert_eq!(decide(150, 100, 90, USUAL), None);
        assert_eq!(decide(200, 100, 90, USUAL), Some(Due::Snapshot));
        assert_eq!(decide(200, 110, 90, USUAL), None, "not for a few entries");
    }

    #[test]
    fn a_log_that_is_kept_whole_is_not_purged() {
        let limits = Limits { interval: 100, kept: u64::MAX };
        assert_eq!(decide(100, 100, 0, limits), None);
        let limits = Limits { interval: u64::MAX, kept: 0 };
        assert_eq!(decide(1 << 40, 100, 100, limits), None);
    }

    #[test]
    fn the_spec_outranks_what_is_usual() {
        let mut store = Store::default();
        assert_eq!(USUAL.of(&store), USUAL);
        let raft = RaftSpec { snapshot_interval: Some(0), ..RaftSpec::default() };
        let spec = ClusterSpec { raft: Some(raft), ..ClusterSpec::default() };
        let cluster = Cluster { id: "c".into(), spec: Some(spec), ..Cluster::default() };
        store.apply(1, &Batch { changes: vec![cluster.put()], now_ns: 1 }).unwrap();
        assert_eq!(USUAL.of(&store), Limits { interval: 1, kept: 10 });
    }
}
