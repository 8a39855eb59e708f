//! The store does not grow without bounds: old tasks go, removed services go.

use std::collections::BTreeMap;

use shoal_api::TaskState;
use shoal_control::Store;

/// Ended tasks that a slot may keep.
const HISTORY: usize = 5;

pub fn check(store: &Store) {
    let mut ended: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    for task in store.tasks() {
        let over = task.desired_state() > TaskState::Running;
        if over && task.state().is_terminal() {
            *ended.entry((&task.service_id, task.slot)).or_default() += 1;
        }
        assert!(!over || task.state() >= TaskState::Assigned, "{} never ran", task.name());
        assert!(store.service(&task.service_id).is_some(), "{} has no service", task.name());
    }
    assert!(ended.values().all(|count| *count <= HISTORY), "{ended:?}");
}
