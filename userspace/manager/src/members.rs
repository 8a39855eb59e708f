//! Makes Raft's membership follow the store: managers are added, promoted, removed, one at a time.
//!
//! Runs on the leader beside its loop. A new manager first learns the log and becomes a voter only
//! when it has caught up: a voter that cannot be reached would take the quorum away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use shoal_api::NodeRole;
use shoal_control::Store;
use tracing::{info, warn};

use crate::state_machine::View;
use crate::types::{Peer, Raft, TypeConfig};

/// Entries that a learner may lack when it becomes a voter: it gets them within one round trip.
const CAUGHT_UP: u64 = 64;
/// Before a refused change is looked at again.
const RETRY: Duration = Duration::from_millis(200);

/// The next step towards the wanted membership.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Learn(u64, Peer),
    Promote(u64),
    Remove(u64),
    /// A joint configuration that an earlier leader left half-way.
    Finish,
}

/// Members as Raft sees them.
#[derive(Default)]
struct Members {
    voters: BTreeSet<u64>,
    /// Learners, with what is known of their log.
    learners: BTreeMap<u64, Option<u64>>,
    joint: bool,
    last_log: u64,
}

/// Follows the store until dropped.
pub async fn reconcile(raft: &Raft, raft_id: u64, view: &View) {
    let mut metrics = raft.metrics();
    let mut applied = view.events.applied();
    loop {
        let members = {
            let now = metrics.borrow_and_update();
            // A change that has not committed yet must not be overtaken by the next one.
            let settled =
                now.membership_config.log_id() == now.committed_membership_config.log_id();
            settled.then(|| members(&now))
        };
        let step = members.and_then(|members| next(&wanted(&view.store()), &members, raft_id));
        if let Some(step) = step {
            info!(?step, "changing the managers");
            if let Err(refused) = take(raft, &step).await {
                warn!(?step, error = refused, "the managers could not be changed, trying again");
                tokio::time::sleep(RETRY).await;
            }
            continue;
        }
        let changed = tokio::select! {
            changed = metrics.changed() => changed.is_ok(),
            changed = applied.changed() => changed.is_ok(),
        };
        if !changed {
            return;
        }
    }
}

async fn take(raft: &Raft, step: &Step) -> Result<(), String> {
    let (change, retain) = match step {
        Step::Learn(id, peer) => {
            let nodes = BTreeMap::from([(*id, peer.clone())]);
            (ChangeMembers::AddNodes(nodes), true)
        }
        Step::Promote(id) => (ChangeMembers::AddVoterIds(BTreeSet::from([*id])), true),
        Step::Finish => (ChangeMembers::AddVoterIds(BTreeSet::new()), true),
        Step::Remove(id) => (
            ChangeMembers::Batch(vec![
                ChangeMembers::RemoveVoters(BTreeSet::from([*id])),
                ChangeMembers::RemoveNodes(BTreeSet::from([*id])),
            ]),
            false,
        ),
    };
    raft.change_membership(change, retain).await.map(drop).map_err(|e| e.to_string())
}

fn wanted(store: &Store) -> BTreeMap<u64, String> {
    store
        .nodes()
        .filter(|node| node.role() == NodeRole::Manager)
        .filter_map(|node| node.manager.as_ref())
        .map(|manager| (manager.raft_id, manager.addr.clone()))
        .collect()
}

fn members(metrics: &RaftMetrics<TypeConfig>) -> Members {
    let membership = metrics.membership_config.membership();
    let matched = |id: &u64| {
        let progress = metrics.replication.as_ref()?;
        progress.get(id)?.as_ref().map(|log_id| log_id.index)
    };
    Members {
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().map(|id| (id, matched(&id))).collect(),
        joint: membership.get_joint_config().len() > 1,
        last_log: metrics.last_log_index.unwrap_or(0),
    }
}

fn next(wanted: &BTreeMap<u64, String>, members: &Members, raft_id: u64) -> Option<Step> {
    if members.joint {
        return Some(Step::Finish);
    }
    // Before the first node is in the store nothing can be said about the others.
    if wanted.is_empty() {
        return None;
    }
    let known = |id: &u64| members.voters.contains(id) || members.learners.contains_key(id);
    if let Some((id, addr)) = wanted.iter().find(|(id, _)| !known(id)) {
        return Some(Step::Learn(*id, Peer { addr: addr.clone() }));
    }
    let caught_up = |matched: &Option<u64>| {
        matched.is_some_and(|matched| matched + CAUGHT_UP >= members.last_log)
    };
    let ready =
        |(id, matched): &(&u64, &Option<u64>)| wanted.contains_key(id) && caught_up(matched);
    if let Some((id, _)) = members.learners.iter().find(ready) {
        return Some(Step::Promote(*id));
    }
    // Itself last, when the others have taken over the votes.
    let mut gone = members.learners.keys().chain(&members.voters);
    if let Some(id) = gone.find(|id| !wanted.contains_key(id) && **id != raft_id) {
        return Some(Step::Remove(*id));
    }
    let may_leave = members.voters.len() > 1 && members.voters.contains(&raft_id);
    (may_leave && !wanted.contains_key(&raft_id)).then_some(Step::Remove(raft_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(ids: &[u64]) -> BTreeMap<u64, String> {
        ids.iter().map(|id| (*id, format!("host{id}:1"))).collect()
    }

    fn members(voters: &[u64], learners: &[(u64, Option<u64>)]) -> Members {
        Members {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            joint: false,
            last_log: 1_000,
        }
    }

    #[test]
    fn a_new_manager_learns_before_it_votes() {
        let wanted = wanted(&[1, 2]);
        let step = next(&wanted, &members(&[1], &[]), 1);
        assert_eq!(step, Some(Step::Learn(2, Peer { addr: "host2:1".into() })));
        assert_eq!(next(&wanted, &members(&[1], &[(2, None)]), 1), None, "not reached yet");
        assert_eq!(next(&wanted, &members(&[1], &[(2, Some(100))]), 1), None, "far behind");
        let step = next(&wanted, &members(&[1], &[(2, Some(990))]), 1);
        assert_eq!(step, Some(Step::Promote(2)));
        assert_eq!(next(&wanted, &members(&[1, 2], &[]), 1), None);
    }

    #[test]
    fn a_manager_that_is_none_any_more_is_removed_and_the_leader_last() {
        let step = next(&wanted(&[2]), &members(&[1, 2, 3], &[]), 1);
        assert_eq!(step, Some(Step::Remove(3)));
        assert_eq!(next(&wanted(&[2]), &members(&[1, 2], &[]), 1), Some(Step::Remove(1)));
        assert_eq!(next(&wanted(&[2]), &members(&[1], &[(2, None)]), 1), None, "no other voter");
    }

    #[test]
    fn nothing_is_removed_on_the_word_of_an_empty_store() {
        assert_eq!(next(&BTreeMap::new(), &members(&[1, 2, 3], &[]), 1), None);
    }

    #[test]
    fn a_change_left_half_way_is_finished_first() {
        let members = Members { joint: true, ..members(&[1, 2], &[]) };
        assert_eq!(next(&wanted(&[1, 2, 3]), &members, 1), Some(Step::Finish));
    }
}
