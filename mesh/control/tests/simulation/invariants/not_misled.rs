//! No ready node's kernel sends packets for a task that ended to the task that has its address or its
//! number now. A node that was down is free to do so until it has its complete set.

use std::collections::BTreeMap;

use shoal_api::NodeState;

use crate::world::World;

pub fn check(world: &World) {
    let attachments = world.store.tasks().flat_map(|task| {
        let given = task.attachments.iter();
        given.map(|a| (a.address.split('/').next().unwrap_or_default(), a.backend, &task.id))
    });
    let (mut addresses, mut numbers) = (BTreeMap::new(), BTreeMap::new());
    for (address, number, task) in attachments {
        addresses.insert(address, task);
        numbers.insert(number, task);
    }
    for agent in &world.agents {
        let ready =
            world.store.node(&agent.node).is_some_and(|node| node.state() == NodeState::Ready);
        if !ready || agent.was_down {
            continue;
        }
        for backend in agent.backends.values() {
            let holder = addresses.get(backend.address.as_str());
            let same = |holder: &&&String| **holder == &backend.task_id;
            assert!(holder.is_none_or(|it| same(&it)), "{}: {backend:?}, {holder:?}", agent.node);
            let holder = numbers.get(&backend.number);
            assert!(holder.is_none_or(|it| same(&it)), "{}: {backend:?}, {holder:?}", agent.node);
        }
    }
}
