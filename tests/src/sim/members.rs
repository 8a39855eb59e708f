//! Makes Raft's membership follow the store, as the manager's `members.rs` does: a manager learns,
//! then votes, then goes; one step at a time, the leader itself last and after it has handed over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{AsyncRuntime, ChangeMembers};
use openraft_rt_sim::SimRuntime;
use shoal_api::NodeRole;
use shoal_control::Store;

use super::manager::Running;
use super::types::{Peer, TypeConfig};
use super::world::World;

/// Entries that a learner may lack when it becomes a voter.
const CAUGHT_UP: u64 = 64;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Step {
    Learn(u64, Peer),
    Promote(u64),
    /// A voter.
    Remove(u64),
    /// A learner.
    Forget(u64),
    HandOver(u64),
    Finish,
}

/// Follows the store until dropped.
pub(super) async fn reconcile(world: &World, running: &Arc<Running>) {
    loop {
        let metrics = running.raft.metrics().borrow_watched().clone();
        let settled =
            metrics.membership_config.log_id() == metrics.committed_membership_config.log_id();
        if let Some(step) =
            settled.then(|| next(&running.view.store(), &metrics, running.raft_id)).flatten()
        {
            let done = take(running, &step).await;
            world.trace.note(format_args!("members by {}: {step:?}: {done:?}", running.raft_id));
            if done.is_ok() {
                world.seen.lock().member_changes += 1;
            }
        }
        SimRuntime::sleep(LOOK).await;
    }
}

async fn take(running: &Running, step: &Step) -> Result<(), String> {
    let (change, retain) = match step {
        Step::HandOver(to) => {
            let done = running.raft.trigger().transfer_leader(*to).await;
            return done.map_err(|e| e.to_string());
        }
        Step::Learn(id, peer) => {
            (ChangeMembers::AddNodes(BTreeMap::from([(*id, peer.clone())])), true)
        }
        Step::Promote(id) => (ChangeMembers::AddVoterIds(BTreeSet::from([*id])), true),
        Step::Finish => (ChangeMembers::AddVoterIds(BTreeSet::new()), true),
        Step::Forget(id) => (ChangeMembers::RemoveNodes(BTreeSet::from([*id])), true),
        // Its node goes with the second step, from the joint configuration on.
        Step::Remove(id) => (ChangeMembers::RemoveVoters(BTreeSet::from([*id])), false),
    };
    running.raft.change_membership(change, retain).await.map(drop).map_err(|e| e.to_string())
}

fn wanted(store: &Store) -> BTreeMap<u64, Peer> {
    let wished = store.nodes().filter(|node| node.role() == NodeRole::Manager);
    let managers = wished.filter_map(|node| node.manager.as_ref());
    managers.map(|manager| (manager.raft_id, Peer { addr: manager.addr.clone() })).collect()
}

fn next(store: &Store, now: &RaftMetrics<TypeConfig>, own: u64) -> Option<Step> {
    let wanted = wanted(store);
    let membership = now.membership_config.membership();
    if membership.get_joint_config().len() > 1 {
        return Some(Step::Finish);
    }
    if wanted.is_empty() {
        return None;
    }
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let learners: BTreeSet<u64> = membership.learner_ids().collect();
    let known = |id: &u64| voters.contains(id) || learners.contains(id);
    if let Some((id, peer)) = wanted.iter().find(|(id, _)| !known(id)) {
        return Some(Step::Learn(*id, peer.clone()));
    }
    let matched = |id: &u64| {
        let progress = now.replication.as_ref()?;
        progress.get(id)?.as_ref().map(|log_id| log_id.index)
    };
    let last = now.last_log_index.unwrap_or(0);
    let caught_up = |id: &u64| matched(id).is_some_and(|matched| matched + CAUGHT_UP >= last);
    if let Some(id) = learners.iter().find(|id| wanted.contains_key(id) && caught_up(id)) {
        return Some(Step::Promote(*id));
    }
    let gone = |id: &&u64| !wanted.contains_key(id) && **id != own;
    if let Some(id) = learners.iter().find(gone) {
        return Some(Step::Forget(*id));
    }
    if let Some(id) = voters.iter().find(gone) {
        return Some(Step::Remove(*id));
    }
    if wanted.contains_key(&own) || voters.len() < 2 {
        return None;
    }
    let others = voters.iter().filter(|id| **id != own && caught_up(id));
    others.max_by_key(|id| matched(id)).map(|id| Step::HandOver(*id))
}

/// Raft ids of the committed members.
pub(super) fn committed(running: &Running) -> BTreeSet<u64> {
    let metrics = running.raft.metrics().borrow_watched().clone();
    let committed = metrics.committed_membership_config.membership();
    committed.nodes().map(|(id, _)| *id).collect()
}
