//! The store does not grow without bounds: old tasks go, removed services go.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_api::TaskState;
use shoal_api::time::Timestamp;
use shoal_control::Store;

/// Ended tasks that a slot may keep.
const HISTORY: usize = 5;

/// How long an ended task may wait for the nodes to forget it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// * `since` - what ended later may still wait for some node.
pub fn check(store: &Store, since: Timestamp) {
    let mut ended: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    for task in store.tasks() {
        let over = task.desired_state() > TaskState::Running;
        let updated = task.meta.as_ref().map_or(0, |meta| meta.updated_at_ns);
        if over && task.state().is_terminal() && Timestamp(updated) <= since {
            *ended.entry((&task.service_id, task.slot)).or_default() += 1;
        }
        assert!(!over || task.state() >= TaskState::Assigned, "{} never ran", task.name());
        assert!(store.service(&task.service_id).is_some(), "{} has no service", task.name());
    }
    assert!(ended.values().all(|count| *count <= HISTORY), "{ended:?}");
}
