//! A task's states only grow, it never moves, and a slot has one task that is meant to run.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::TaskState;
use shoal_control::Store;

/// What each task was at the last look.
#[derive(Debug, Default)]
pub struct Memory {
    tasks: BTreeMap<String, (TaskState, TaskState, String)>,
}

pub fn check(memory: &mut Memory, store: &Store) {
    let mut tasks = BTreeMap::new();
    let mut filled = BTreeSet::new();
    for task in store.tasks() {
        let is = (task.state(), task.desired_state(), task.node_id.clone());
        if let Some(was) = memory.tasks.get(&task.id) {
            assert!(is.0 >= was.0 && is.1 >= was.1, "{} went from {was:?} to {is:?}", task.name());
            assert!(was.2.is_empty() || was.2 == is.2, "{} moved: {was:?} {is:?}", task.name());
        }
        if task.desired_state() <= TaskState::Running {
            assert!(filled.insert((&task.service_id, task.slot)), "{} is doubled", task.name());
        }
        tasks.insert(task.id.clone(), is);
    }
    memory.tasks = tasks;
}
