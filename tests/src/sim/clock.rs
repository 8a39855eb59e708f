//! A host's clocks: one that counts a little too fast or too slow, and one on the wall that jumps; and
//! the cluster's time, which a leader makes of them.

use std::time::Duration;

use openraft::Instant as _;
use openraft_rt_sim::SimInstant;
use parking_lot::Mutex;
use shoal_api::time::Timestamp;
use shoal_control::Store;

/// When runs begin, by a clock that is right.
const BEGIN_NS: u64 = 1_700_000_000_000_000_000;

/// One host's clocks.
pub(super) struct HostClock {
    /// Of a million: how many microseconds it counts in a second.
    rate: u64,
    offset_ns: Mutex<i64>,
}

impl HostClock {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate, offset_ns: Mutex::new(0) }
    }

    /// Nanoseconds counted since the run began.
    pub(super) fn counted_ns(&self) -> u64 {
        let passed = SimInstant::now().elapsed_since_start().as_nanos();
        u64::try_from(passed * u128::from(self.rate) / 1_000_000).unwrap_or(u64::MAX)
    }

    pub(super) fn wall(&self) -> Timestamp {
        let right = BEGIN_NS + self.counted_ns();
        Timestamp(right.saturating_add_signed(*self.offset_ns.lock()))
    }

    pub(super) fn jump(&self, ns: i64) {
        *self.offset_ns.lock() = ns;
    }

    /// How long a timer of this host takes that was set to `wanted`.
    pub(super) fn takes(&self, wanted: Duration) -> Duration {
        let nanos = wanted.as_nanos() * 1_000_000 / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The cluster's time: never before what an earlier leader wrote.
pub(super) struct ClusterClock {
    started_ns: u64,
    epoch_ns: u64,
}

impl ClusterClock {
    pub(super) fn start(host: &HostClock, store: &Store) -> Self {
        let wall = host.wall().nanos();
        Self { started_ns: host.counted_ns(), epoch_ns: wall.max(newest(store)) }
    }

    pub(super) fn now(&self, host: &HostClock) -> Timestamp {
        Timestamp(self.epoch_ns + (host.counted_ns() - self.started_ns))
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
