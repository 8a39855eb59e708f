//! The cluster's time, as one leader tells it to the control plane.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use shoal_api::time::Timestamp;
use shoal_control::Store;

/// The wall clock, read once, and never before what an earlier leader wrote: the cluster's time does
/// not go back, though its managers' clocks differ. A delay is over when it should be.
pub(super) struct Clock {
    started: Instant,
    epoch_ns: u64,
}

impl Clock {
    /// A leader begins with this store.
    pub(super) fn start(store: &Store) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        Self { started: Instant::now(), epoch_ns: epoch_ns.max(newest(store)) }
    }

    /// The cluster's time now.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp(self.epoch_ns) + self.started.elapsed()
    }

    /// The cluster's time at an instant that has passed.
    pub(super) fn at(&self, instant: Instant) -> Timestamp {
        self.now() - instant.elapsed()
    }
}

/// When the store's newest object was written.
fn newest(store: &Store) -> u64 {
    let nodes = store.nodes().filter_map(|node| node.meta.as_ref());
    let services = store.services().filter_map(|service| service.meta.as_ref());
    let tasks = store.tasks().filter_map(|task| task.meta.as_ref());
    let networks = store.networks().filter_map(|network| network.meta.as_ref());
    let cluster = store.cluster().and_then(|cluster| cluster.meta.as_ref());
    let all = nodes.chain(services).chain(tasks).chain(networks).chain(cluster);
    all.map(|meta| meta.updated_at_ns).max().unwrap_or(0)
}
