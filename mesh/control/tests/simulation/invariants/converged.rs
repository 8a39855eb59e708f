//! Once all is healed: every service has its replicas, of its present spec, running on the nodes
//! that were told so, and nothing else runs; every node holds what it should; no change of a role
//! and no roll-over is left half done; and it is quiet.

use std::collections::BTreeSet;

use shoal_api::{NodeState, TaskState};

use crate::world::World;

pub fn check(world: &World) {
    let store = &world.store;
    assert!(world.quiet_ticks() > 60, "the leader still writes");
    assert!(store.nodes().all(|node| node.state() == NodeState::Ready), "all nodes are ready");
    for node in store.nodes() {
        assert_eq!(node.certified_role(), node.role(), "{}", node.id);
    }
    let root = store.cluster().and_then(|cluster| cluster.root_ca.as_ref()).expect("a root");
    assert_eq!(root.rotation, None, "the roll-over came to its end");
    let mut running = BTreeSet::new();
    for service in store.services() {
        assert!(!service.pending_delete, "{} is still there", service.name());
        let live = store.tasks_of_service(&service.id);
        let live: Vec<_> = live.filter(|t| t.desired_state() <= TaskState::Running).collect();
        let replicas = service.spec.as_ref().map_or(0, |spec| spec.replicas);
        assert_eq!(live.len() as u64, replicas, "{}", service.name());
        for task in live {
            let is = (task.state(), task.desired_state(), task.spec_version);
            let expected = (TaskState::Running, TaskState::Running, service.spec_version);
            assert_eq!(is, expected, "{} on {}", task.name(), task.node_id);
            running.insert((task.node_id.clone(), task.id.clone()));
        }
    }
    let mut really = BTreeSet::new();
    for agent in &world.agents {
        let runs = agent.runs.values().filter(|run| !run.state.is_terminal());
        really.extend(runs.map(|run| (agent.node.clone(), run.task.id.clone())));
    }
    assert_eq!(really, running, "what runs is what should");
    for progress in world.control.progress(store) {
        assert_eq!(progress.held_index, progress.wanted_index, "{}", progress.node_id);
    }
}
