//! An agent that has applied everything it was sent knows exactly what the store says: its own
//! tasks and the routes, computed here once more from the store alone.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{BackendState, NodeState, RouteBackend, Task, TaskState};
use shoal_control::Store;

use crate::agent::Agent;
use crate::world::World;

pub fn check(world: &World) {
    let expected = backends(&world.store);
    let expected_services = ports_of_services(&world.store);
    for agent in world.agents.iter().filter(|agent| is_up_to_date(world, agent)) {
        assert_eq!(agent.backends, expected, "backends at {}", agent.node);
        let nodes: BTreeSet<_> = agent.nodes.values().map(|n| (&n.node_id, n.number)).collect();
        let known: BTreeSet<_> = world.store.nodes().map(|n| (&n.id, n.number)).collect();
        assert_eq!(nodes, known, "nodes at {}", agent.node);
        let services = agent.services.values();
        let services: BTreeMap<_, _> =
            services.map(|service| (service.number, service.ports.clone())).collect();
        assert_eq!(services, expected_services, "services at {}", agent.node);
        check_tasks(&world.store, agent);
    }
}

/// The session stands on both sides and nothing is on its way.
fn is_up_to_date(world: &World, agent: &Agent) -> bool {
    let progress = world.control.progress(&world.store);
    let wanted = progress.iter().find(|progress| progress.node_id == agent.node);
    agent.session.is_some()
        && agent.inbox.is_empty()
        && agent.held > 0
        && wanted.is_some_and(|progress| progress.wanted_index == agent.held)
}

fn check_tasks(store: &Store, agent: &Agent) {
    let assigned = |task: &&std::sync::Arc<Task>| task.state() >= TaskState::Assigned;
    let ids: BTreeSet<_> =
        store.tasks_of_node(&agent.node).filter(assigned).map(|task| task.id.clone()).collect();
    assert_eq!(agent.runs.keys().cloned().collect::<BTreeSet<_>>(), ids, "at {}", agent.node);
    for task in store.tasks_of_node(&agent.node).filter(assigned) {
        let told = &agent.runs[&task.id].task;
        assert_eq!(told.attachments, task.attachments);
        // It may not have been told to stop yet, while it leaves the rings.
        let drains =
            task.desired_state() > TaskState::Running && told.desired_state() == TaskState::Running;
        assert!(drains || told.desired_state == task.desired_state, "{}", task.name());
    }
}

fn ports_of_services(store: &Store) -> BTreeMap<u32, Vec<shoal_api::PortConfig>> {
    let published = store.services().filter(|service| !service.ports.is_empty());
    published.map(|service| (service.number, service.ports.clone())).collect()
}

fn backends(store: &Store) -> BTreeMap<u32, RouteBackend> {
    let mut backends = BTreeMap::new();
    for task in store.tasks().filter(|task| task.state() == TaskState::Running) {
        // Removed: its tasks are being given up.
        let Some(node) = store.node(&task.node_id) else { continue };
        if node.state() == NodeState::Down {
            continue;
        }
        let service = store.service(&task.service_id).expect("services outlive their tasks");
        let attachment = &task.attachments[0];
        let wanted = task.desired_state() <= TaskState::Running;
        let state = if wanted { BackendState::Active } else { BackendState::Draining };
        let (address, _) = attachment.address.split_once('/').expect("a prefix");
        let backend = RouteBackend {
            number: attachment.backend,
            task_id: task.id.clone(),
            service: service.number,
            node: node.number,
            address: address.into(),
            mac: attachment.mac.clone(),
            state: state.into(),
        };
        backends.insert(backend.number, backend);
    }
    backends
}
