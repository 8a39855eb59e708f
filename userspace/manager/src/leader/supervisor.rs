//! Starts the leader's loop when this manager leads with a quorum behind it, and ends it when not.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{Instant as _, ServerState};
use parking_lot::Mutex;
use shoal_api::JoinRequest;
use shoal_api::time::Timestamp;
use shoal_control::Store;
use tracing::{info, warn};

use super::clock::Clock;
use super::{Desk, LastHeard, Leader, Reply, knows};
use crate::founding::Founding;
use crate::members;
use crate::state_machine::View;
use crate::types::{Raft, TypeConfig};

/// How long a leader goes on without a word of a quorum: longer than its lease, which a starved
/// machine may miss for a moment, and shorter than the silence after which a node is down. It may
/// be the one that is cut off, so it must not judge nodes by their silence.
const ALONE: Duration = Duration::from_secs(2);
/// How often that is looked at: nothing happens while nobody answers.
const ALONE_CHECK: Duration = Duration::from_millis(250);
/// How long a leader that hands over finishes what it has taken.
const DRAIN: Duration = Duration::from_secs(1);
/// A new leader gives the last one's node a second to open a session, however long the election
/// took: both may have been restarted.
const HEARD_AT_MOST: Duration = Duration::from_secs(2);

/// What the supervisor of the loop needs.
pub struct Leadership {
    /// The Raft node.
    pub raft: Raft,
    /// This manager's Raft id.
    pub raft_id: u64,
    /// The store.
    pub view: Arc<View>,
    /// Where commands are handed in.
    pub desk: Desk,
    /// The leader before.
    pub last_heard: LastHeard,
    /// What the cluster starts from that this manager founds.
    pub bootstrap: Option<Founding>,
    /// This manager's node, when it goes on alone and the store does not say so yet.
    pub forced: Option<JoinRequest>,
    /// Who waits for the cluster to be founded.
    pub founding: Mutex<Option<Reply>>,
    /// How often an agent must send a heartbeat, where the cluster's spec says nothing.
    pub agent_heartbeat: Duration,
    /// How long a leader counts a manager's answer.
    pub lease: Duration,
}

impl Leadership {
    /// Runs the loop whenever this manager leads, until the Raft node stops.
    pub async fn run(self) {
        let mut metrics = self.raft.metrics();
        loop {
            let term = {
                let now = metrics.borrow_and_update();
                let applied = now.last_applied.map(|last| *last.committed_leader_id());
                // The first entry of its own term is applied: so is all that was acknowledged. And
                // so is the whole log: where a quorum was away for a moment, the last loop's
                // proposal may still stand there, and would be made a second time.
                let leads = now.state == ServerState::Leader
                    && applied.is_some_and(|leader| *leader == now.current_term)
                    && now.last_applied.map(|last| last.index) == now.last_log_index;
                (leads && has_quorum(&now)).then_some(now.current_term)
            };
            if let Some(term) = term {
                let commands = self.desk.open();
                info!(term, "leading");
                let mut leader = pin!(Leader::new(&self, term).run(commands));
                tokio::select! {
                    () = &mut leader => {}
                    heir = self.reconcile() => if let Some(heir) = heir {
                        // What was taken is answered; what comes now waits for the next leader.
                        self.desk.close();
                        if tokio::time::timeout(DRAIN, leader).await.is_err() {
                            warn!("some writes have no answer yet");
                        }
                        members::hand_over(&self.raft, heir).await;
                    },
                    () = self.lost(term) => {}
                }
                self.desk.close();
                info!(term, "not leading any more");
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Follows the store, once that is the one of this manager's Raft: after a forced recovery it
    /// first names members that are lost.
    async fn reconcile(&self) -> Option<u64> {
        let mut applied = self.view.events.applied();
        while self.forced.is_some() && !knows(&self.view.store(), self.raft_id) {
            if applied.changed().await.is_err() {
                return None;
            }
        }
        members::reconcile(&self.raft, self.raft_id, &self.view, &self.desk).await
    }

    /// Returns when this manager does not lead in `term` any more, or nobody follows: its nodes are
    /// better off with another leader, and it starts anew when it has a quorum again.
    async fn lost(&self, term: u64) {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let now = metrics.borrow_and_update();
                if now.state != ServerState::Leader || now.current_term != term {
                    return;
                }
                if !has_quorum(&now) {
                    warn!(term, "no quorum of managers answers");
                    return;
                }
            }
            if let Ok(Err(_ended)) = tokio::time::timeout(ALONE_CHECK, metrics.changed()).await {
                return;
            }
        }
    }

    /// The old leader was alive when it was last heard, which is some time before the election.
    pub(super) fn last_seen(&self, store: &Store, clock: &Clock) -> BTreeMap<String, Timestamp> {
        // Used once: nobody led since whom this manager followed.
        let Some((raft_id, heard)) = self.last_heard.take() else { return BTreeMap::new() };
        let of_old_leader = |node: &shoal_api::Node| {
            node.manager.as_ref().is_some_and(|manager| manager.raft_id == raft_id)
        };
        store
            .nodes()
            .filter(|node| raft_id != self.raft_id && of_old_leader(node))
            .map(|node| (node.id.clone(), clock.at(heard).max(clock.now() - HEARD_AT_MOST)))
            .collect()
    }
}

/// Whether a quorum followed this leader a moment ago.
pub fn has_quorum(now: &RaftMetrics<TypeConfig>) -> bool {
    let single = now.membership_config.membership().voter_ids().count() == 1;
    let acked = now.last_quorum_acked.as_ref();
    single || acked.is_some_and(|acked| acked.into_inner().elapsed() < ALONE)
}
