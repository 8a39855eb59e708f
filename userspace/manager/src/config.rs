//! Where a manager keeps its state, how it is reached, and its timings.

use std::path::PathBuf;
use std::time::Duration;

use openraft::SnapshotPolicy;
use shoal_transport::Credentials;

use crate::vault::Vault;

/// What a manager is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of this manager's own; made if it is not there.
    pub state_dir: PathBuf,
    /// Id of the node that the manager runs on.
    pub node_id: String,
    /// `host:port` at which the others reach this manager's gRPC server.
    pub advertise_addr: String,
    /// Timings.
    pub timings: Timings,
    /// The folder's own; seals what lies in it.
    pub vault: Vault,
    /// Who this manager is to the others, and whom it trusts.
    pub credentials: Credentials,
    /// `host:port` to find the other managers by when all their addresses changed; names are looked
    /// up anew at each try.
    pub join_addrs: Vec<String>,
}

impl Config {
    /// A manager with the usual timings.
    #[must_use]
    pub fn new(
        state_dir: impl Into<PathBuf>,
        node_id: impl Into<String>,
        advertise_addr: impl Into<String>,
        vault: Vault,
        credentials: Credentials,
    ) -> Self {
        Self {
            state_dir: state_dir.into(),
            node_id: node_id.into(),
            advertise_addr: advertise_addr.into(),
            timings: Timings::default(),
            vault,
            credentials,
            join_addrs: Vec::new(),
        }
    }
}

/// How fast a manager is, and how patient.
#[derive(Clone, Debug)]
pub struct Timings {
    /// Between two heartbeats of the leader, and what one may take. Short enough that several fit
    /// in the shortest election time-out, long enough for a starved machine to answer one.
    pub raft_heartbeat: Duration,
    /// Shortest time without a leader before an election. With the lease, which lasts as long as
    /// the longest, a dead leader is replaced after one to two seconds.
    pub election_min: Duration,
    /// Longest time without a leader before an election; also how long a follower stands by its
    /// leader. The spread keeps two candidates from splitting the votes.
    pub election_max: Duration,
    /// Entries between two snapshots, where the cluster's spec says nothing: `SwarmKit`'s number,
    /// and a replay of these takes a second or two.
    pub snapshot_after: u64,
    /// Entries kept behind a snapshot, so that a follower that was away for a moment gets entries
    /// and not everything.
    pub kept_entries: u64,
    /// How long a slow follower may take to receive and store a snapshot.
    pub snapshot_transfer: Duration,
    /// How long a read waits for the leader's word; longer than an election, so that reads pass
    /// through a fail-over.
    pub read_timeout: Duration,
    /// The same for a write.
    pub write_timeout: Duration,
    /// How often an agent must send a heartbeat.
    pub agent_heartbeat: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            raft_heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1_000),
            snapshot_after: 10_000,
            kept_entries: 1_000,
            snapshot_transfer: Duration::from_secs(60),
            read_timeout: Duration::from_secs(4),
            write_timeout: Duration::from_secs(6),
            agent_heartbeat: Duration::from_secs(1),
        }
    }
}

impl Timings {
    /// Raft's own configuration.
    pub(crate) fn raft(&self) -> openraft::Config {
        openraft::Config {
            cluster_name: "shoal".into(),
            heartbeat_interval: millis(self.raft_heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(self.snapshot_transfer),
            // Snapshots and purges follow the cluster's spec, see `compaction`.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // A follower gets entries as long as they are there: what is kept is for it.
            replication_lag_threshold: u64::MAX,
            // A host that was cut off comes back without disturbing the leader.
            enable_pre_vote: Some(true),
            // A leader that comes back asks for votes: it may have missed what others committed.
            enable_leader_restore: Some(false),
            // A follower whose disk has lost what it acknowledged (it lied, or a machine was rolled
            // back) is caught up again; what a quorum has stored is never withdrawn.
            allow_log_reversion: Some(true),
            ..openraft::Config::default()
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raft_accepts_the_usual_timings() {
        Timings::default().raft().validate().unwrap();
    }
}
