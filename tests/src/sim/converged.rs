//! Liveness: once all is healed, the cluster comes to rest within a bounded time, and as it should
//! be: one leader, equal stores, Raft's members those of the store, and of every service just its
//! replicas running.
//!
//! Source: issue "Cluster life cycle", simulation: "a safety phase, then heal, then liveness";
//! ARCHITECTURE.md, invariants 2 and 4.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use openraft_rt_sim::SimRuntime;
use shoal_api::{NodeState, TaskState};
use shoal_control::Store;
use tokio::sync::oneshot;

use super::desk::Command;
use super::invariants::Event;
use super::manager::Running;
use super::world::World;

const LOOK: Duration = Duration::from_millis(250);
/// How long it must stay as it should be.
const REST: u32 = 8;
/// Time to come to rest: three elections, a few missed heartbeats, a drain and a restart delay for
/// each task take less than half of it.
const LIMIT: u32 = 360;

/// Waits for the cluster to come to rest; a judge hears of it if it does not.
pub(super) async fn wait(world: &Arc<World>) {
    let mut why = String::new();
    let mut rests = (0, 0);
    for _ in 0..LIMIT {
        SimRuntime::sleep(LOOK).await;
        let index = world.judge.chosen();
        match check(world).await {
            Ok(()) if rests.0 == index => rests.1 += 1,
            Ok(()) => rests = (index, 1),
            Err(reason) => {
                why = reason;
                rests = (index, 0);
            }
        }
        if rests.1 >= REST {
            for running in world.all_running() {
                let store = running.view.store();
                world.judge.observe(&Event::Healed { raft_id: running.raft_id, store: &store });
            }
            return;
        }
    }
    let last = if why.is_empty() { "it does not come to rest".into() } else { why };
    world.judge.complain(format!("liveness: {last}"));
}

async fn check(world: &Arc<World>) -> Result<(), String> {
    let running = world.all_running();
    let leaders: Vec<_> = running.iter().filter(|running| running.desk.is_open()).collect();
    let [leader] = leaders[..] else { return Err(format!("{} leaders", leaders.len())) };
    let store = leader.view.store();
    members(leader, &running, &store)?;
    for other in &running {
        let (has, wanted) = (other.view.applied(), leader.view.applied());
        if has != wanted {
            return Err(format!("{} is at {has}, the leader at {wanted}", other.raft_id));
        }
    }
    services(world, &store)?;
    let (reply, progress) = oneshot::channel();
    leader.desk.send(Command::Progress { reply });
    let progress = progress.await.map_err(|_| "the leader has ended".to_owned())?;
    match progress.iter().find(|(_, (wanted, held))| wanted != held) {
        None => Ok(()),
        Some((node, (wanted, held))) => Err(format!("{node} holds {held}, not {wanted}")),
    }
}

fn members(leader: &Running, running: &[Arc<Running>], store: &Store) -> Result<(), String> {
    let metrics = leader.raft.metrics().borrow_watched().clone();
    let voters: BTreeSet<u64> =
        metrics.committed_membership_config.membership().voter_ids().collect();
    let nodes = metrics.membership_config.membership().nodes().count();
    let managers = store.nodes().filter_map(|node| node.manager.as_ref());
    let managers: BTreeSet<u64> = managers.map(|manager| manager.raft_id).collect();
    let up: BTreeSet<u64> = running.iter().map(|running| running.raft_id).collect();
    if voters != managers || up != managers || nodes != voters.len() {
        return Err(format!("voters {voters:?}, managers {managers:?}, running {up:?}"));
    }
    let wish = |node: &&Arc<shoal_api::Node>| {
        (node.role() == shoal_api::NodeRole::Manager) != node.manager.is_some()
    };
    match store.nodes().find(wish) {
        None => Ok(()),
        Some(node) => Err(format!("{} waits for its role", node.id)),
    }
}

fn services(world: &World, store: &Store) -> Result<(), String> {
    if let Some(node) = store.nodes().find(|node| node.state() != NodeState::Ready) {
        return Err(format!("node {} is {:?}", node.id, node.state()));
    }
    let mut wanted = BTreeSet::new();
    for service in store.services() {
        if service.pending_delete {
            return Err(format!("service {} is still there", service.name()));
        }
        let live = store.tasks_of_service(&service.id);
        let live: Vec<_> = live.filter(|t| t.desired_state() <= TaskState::Running).collect();
        let replicas = service.spec.as_ref().map_or(0, |spec| spec.replicas);
        if live.len() as u64 != replicas {
            return Err(format!("service {} has {} tasks", service.name(), live.len()));
        }
        for task in live {
            let is = (task.state(), task.desired_state(), task.spec_version);
            if is != (TaskState::Running, TaskState::Running, service.spec_version) {
                return Err(format!("task {} is {is:?}", task.name()));
            }
            wanted.insert((task.node_id.clone(), task.id.clone()));
        }
    }
    let runs = world.runs();
    let missing: Vec<_> = wanted.difference(&runs).collect();
    let more: Vec<_> = runs.difference(&wanted).collect();
    if runs == wanted { Ok(()) } else { Err(format!("{missing:?} do not run, {more:?} do")) }
}
