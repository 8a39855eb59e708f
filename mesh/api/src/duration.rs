//! Durations that a spec may leave unset, and their defaults.

use std::time::Duration;

use crate::{RestartPolicy, TaskSpec};

/// From SIGTERM to SIGKILL when the spec does not say; Docker's default (swarm.md S19).
pub const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);
/// Between a task's end and its replacement's start; Docker's default (swarm.md S7).
pub const RESTART_DELAY: Duration = Duration::from_secs(5);
/// How often an agent sends a heartbeat. A node is down after [`HEARTBEATS_MISSED`] of them.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// Heartbeats that a node may miss before its tasks are replaced elsewhere.
pub const HEARTBEATS_MISSED: u32 = 3;
/// Life of a node's certificate when the spec does not say; Docker's default (swarm.md CL2).
pub const NODE_CERT_EXPIRY: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// The least that it may be; Docker's (swarm.md §1.13).
pub const NODE_CERT_EXPIRY_MIN: Duration = Duration::from_secs(60 * 60);
/// How long a removed node is refused after its last certificate expired (swarm.md N5).
pub const REMOVED_NODE_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl TaskSpec {
    /// How long a task may take to stop before it is killed.
    #[must_use]
    pub fn stop_grace_period(&self) -> Duration {
        self.container
            .as_ref()
            .and_then(|container| container.stop_grace_period_ns)
            .map_or(STOP_GRACE_PERIOD, Duration::from_nanos)
    }
}

impl RestartPolicy {
    /// How long to wait before a replacement starts.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay_ns.map_or(RESTART_DELAY, Duration::from_nanos)
    }
}
