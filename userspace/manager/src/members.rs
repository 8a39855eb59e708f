//! Makes Raft's membership follow the store: managers are added, promoted, moved, removed, one at
//! a time.
//!
//! Runs on the leader beside its loop. A new manager first learns the log and becomes a voter only
//! when it has caught up: a voter that cannot be reached would take the quorum away. A leader that
//! is to go hands its office over first, and the next one removes it. Once the committed membership
//! lacks a manager, the loop hears of it and the node is a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{ChangeMembers, Instant as _, ServerState};
use shoal_api::NodeRole;
use shoal_control::Store;
use tracing::{info, warn};

use crate::leader::{Command, Desk};
use crate::state_machine::View;
use crate::types::{Peer, Raft, TypeConfig};

/// Entries that a learner may lack when it becomes a voter: it gets them within one round trip.
const CAUGHT_UP: u64 = 64;
/// Before a refused change is looked at again.
const RETRY: Duration = Duration::from_millis(200);
/// How long another manager may take to take over: an election without its time-out.
const HAND_OVER: Duration = Duration::from_secs(2);

/// The next step towards the wanted membership.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Learn(u64, Peer),
    Promote(u64),
    /// It is reached elsewhere now.
    Move(u64, Peer),
    Remove(u64),
    /// A learner goes.
    Forget(u64),
    /// This leader is to go: that voter shall lead.
    HandOver(u64),
    /// A joint configuration that an earlier leader left half-way.
    Finish,
}

/// Members as Raft sees them.
#[derive(Default)]
struct Members {
    /// Voters and learners, with what is known of their log.
    voters: BTreeMap<u64, Option<u64>>,
    learners: BTreeMap<u64, Option<u64>>,
    /// Where Raft reaches each.
    addrs: BTreeMap<u64, String>,
    joint: bool,
    last_log: u64,
}

/// Follows the store until dropped, or until this leader is to go: then the Raft id of the manager
/// that shall lead. `None` when Raft has ended.
pub async fn reconcile(raft: &Raft, raft_id: u64, view: &View, desk: &Desk) -> Option<u64> {
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
        let store = view.store();
        if let Some(members) = members {
            for raft_id in gone(&store, &members) {
                // With a full queue it is told again after the next change.
                drop(desk.send(Command::MemberRemoved { raft_id }));
            }
            if let Some(step) = next(&wanted(&store), &members, raft_id) {
                info!(?step, "changing the managers");
                if let Step::HandOver(heir) = step {
                    return Some(heir);
                }
                if let Err(refused) = take(raft, &step).await {
                    warn!(?step, error = refused, "the managers could not be changed");
                    tokio::time::sleep(RETRY).await;
                }
                continue;
            }
        }
        let changed = tokio::select! {
            changed = metrics.changed() => changed.is_ok(),
            changed = applied.changed() => changed.is_ok(),
        };
        if !changed {
            return None;
        }
    }
}

/// Makes another voter the leader, and returns when it is, or will not be.
pub async fn hand_over(raft: &Raft, heir: u64) {
    if let Err(ended) = raft.trigger().transfer_leader(heir).await {
        warn!(%ended, "leadership was not handed over");
        return;
    }
    let mut metrics = raft.metrics();
    let handed_over = async {
        while metrics.borrow_and_update().state == ServerState::Leader {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(HAND_OVER, handed_over).await.is_err() {
        warn!(raft.id = heir, "no other manager took over in time");
    }
}

async fn take(raft: &Raft, step: &Step) -> Result<(), String> {
    let (change, retain) = match step {
        Step::Learn(id, peer) => {
            let nodes = BTreeMap::from([(*id, peer.clone())]);
            (ChangeMembers::AddNodes(nodes), true)
        }
        Step::Move(id, peer) => {
            let nodes = BTreeMap::from([(*id, peer.clone())]);
            (ChangeMembers::SetNodes(nodes), true)
        }
        Step::Promote(id) => (ChangeMembers::AddVoterIds(BTreeSet::from([*id])), true),
        Step::Finish => (ChangeMembers::AddVoterIds(BTreeSet::new()), true),
        // Not kept as a learner.
        Step::Remove(id) => (ChangeMembers::RemoveVoters(BTreeSet::from([*id])), false),
        Step::Forget(id) => (ChangeMembers::RemoveNodes(BTreeSet::from([*id])), true),
        Step::HandOver(_) => return Ok(()),
    };
    raft.change_membership(change, retain).await.map(drop).map_err(|e| e.to_string())
}

/// Raft ids of the managers that answered the leader within `lease`, itself among them; empty where
/// this manager does not lead.
pub fn reachable(metrics: &RaftMetrics<TypeConfig>, lease: Duration) -> BTreeSet<u64> {
    let Some(heard) = &metrics.heartbeat else { return BTreeSet::new() };
    let recent = heard.iter().filter(|(_, heard)| {
        heard.as_ref().is_some_and(|heard| heard.into_inner().elapsed() < lease)
    });
    recent.map(|(id, _)| *id).chain([metrics.id]).collect()
}

/// Raft ids of nodes that are to be managers no more and that Raft has let go.
fn gone(store: &Store, members: &Members) -> Vec<u64> {
    let managers = store.nodes().filter(|node| node.role() != NodeRole::Manager);
    let ids = managers.filter_map(|node| Some(node.manager.as_ref()?.raft_id));
    ids.filter(|id| !members.addrs.contains_key(id)).collect()
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
    let matched = |id: u64| {
        let progress = metrics.replication.as_ref()?;
        progress.get(&id)?.as_ref().map(|log_id| log_id.index)
    };
    Members {
        voters: membership.voter_ids().map(|id| (id, matched(id))).collect(),
        learners: membership.learner_ids().map(|id| (id, matched(id))).collect(),
        addrs: membership.nodes().map(|(id, peer)| (*id, peer.addr.clone())).collect(),
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
    for (id, addr) in wanted {
        match members.addrs.get(id) {
            None => return Some(Step::Learn(*id, Peer { addr: addr.clone() })),
            Some(known) if known != addr => {
                return Some(Step::Move(*id, Peer { addr: addr.clone() }));
            }
            Some(_) => {}
        }
    }
    let caught_up = |matched: &Option<u64>| {
        matched.is_some_and(|matched| matched + CAUGHT_UP >= members.last_log)
    };
    let ready =
        |(id, matched): &(&u64, &Option<u64>)| wanted.contains_key(id) && caught_up(matched);
    if let Some((id, _)) = members.learners.iter().find(ready) {
        return Some(Step::Promote(*id));
    }
    if let Some(id) = members.learners.keys().find(|id| !wanted.contains_key(id)) {
        return Some(Step::Forget(*id));
    }
    // Itself last, when the others have taken over the votes.
    let mut gone = members.voters.keys().filter(|id| !wanted.contains_key(id));
    if let Some(id) = gone.find(|id| **id != raft_id) {
        return Some(Step::Remove(*id));
    }
    if wanted.contains_key(&raft_id) {
        return None;
    }
    let heirs = members.voters.iter().filter(|(id, _)| **id != raft_id && wanted.contains_key(id));
    let (heir, _) = heirs.filter(|(_, matched)| caught_up(matched)).max_by_key(|(_, at)| **at)?;
    Some(Step::HandOver(*heir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(ids: &[u64]) -> BTreeMap<u64, String> {
        ids.iter().map(|id| (*id, format!("host{id}:1"))).collect()
    }

    fn members(voters: &[u64], learners: &[(u64, Option<u64>)]) -> Members {
        let ids = voters.iter().copied().chain(learners.iter().map(|(id, _)| *id));
        Members {
            voters: voters.iter().map(|id| (*id, Some(1_000 - id))).collect(),
            learners: learners.iter().copied().collect(),
            addrs: ids.map(|id| (id, format!("host{id}:1"))).collect(),
            joint: false,
            last_log: 1_000,
        }
    }

    fn node(raft_id: u64, role: NodeRole) -> shoal_api::Node {
        shoal_api::Node {
            id: format!("n{raft_id}"),
            spec: Some(shoal_api::NodeSpec { role: role.into(), ..Default::default() }),
            manager: Some(shoal_api::ManagerStatus { raft_id, addr: format!("host{raft_id}:1") }),
            ..Default::default()
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
        let step = next(&wanted(&[2]), &members(&[1, 2], &[(3, Some(9))]), 1);
        assert_eq!(step, Some(Step::Forget(3)), "a learner that was left over");
        // Whoever leads then removes it.
        assert_eq!(next(&wanted(&[2]), &members(&[1, 2], &[]), 1), Some(Step::HandOver(2)));
        assert_eq!(next(&wanted(&[2]), &members(&[1, 2], &[]), 2), Some(Step::Remove(1)));
        assert_eq!(next(&wanted(&[2]), &members(&[1], &[(2, None)]), 1), None, "no other voter");
    }

    #[test]
    fn a_leader_that_is_to_go_gives_its_office_to_the_one_that_knows_most() {
        let mut members = members(&[1, 2, 3, 4], &[]);
        members.voters.insert(2, Some(999));
        members.voters.insert(4, None);
        assert_eq!(next(&wanted(&[2, 3, 4]), &members, 1), Some(Step::HandOver(2)));
        members.voters.insert(2, Some(10));
        assert_eq!(next(&wanted(&[2, 3, 4]), &members, 1), Some(Step::HandOver(3)), "2 is behind");
        members.voters.insert(3, None);
        assert_eq!(next(&wanted(&[2, 3, 4]), &members, 1), None, "nobody can take over yet");
    }

    #[test]
    fn a_manager_that_moved_is_reached_at_its_new_address() {
        let mut wanted = wanted(&[1, 2]);
        wanted.insert(2, "elsewhere:1".into());
        let step = next(&wanted, &members(&[1, 2], &[]), 1);
        assert_eq!(step, Some(Step::Move(2, Peer { addr: "elsewhere:1".into() })));
    }

    #[test]
    fn a_demoted_manager_is_gone_once_raft_lacks_it_and_a_new_one_never_is() {
        let nodes = [node(1, NodeRole::Manager), node(2, NodeRole::Worker)];
        let new = node(3, NodeRole::Manager);
        let changes = nodes.iter().chain([&new]).map(|node| node.clone().put()).collect();
        let mut store = Store::default();
        store.apply(1, &shoal_api::Batch { changes, now_ns: 1 }).unwrap();
        assert_eq!(gone(&store, &members(&[1, 2], &[])), [0; 0]);
        assert_eq!(gone(&store, &members(&[1], &[])), [2]);
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
