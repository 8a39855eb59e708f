//! Tasks spread, and say why where they cannot be placed.

use std::collections::BTreeMap;

use shoal_api::{NodeAvailability, TaskState};

use super::{Bed, spec};

fn on_nodes(bed: &Bed, name: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for task in bed.live(name) {
        *counts.entry(task.node_id).or_default() += 1;
    }
    counts
}

#[test]
fn a_services_tasks_spread_over_the_nodes() {
    let mut bed = Bed::new(3);
    bed.create(spec("web", 7, &[])).unwrap();
    let counts: Vec<_> = on_nodes(&bed, "web").into_values().collect();
    assert_eq!(counts, [3, 2, 2]);
}

#[test]
fn among_equals_the_emptier_node_wins() {
    let mut bed = Bed::new(3);
    bed.create(spec("a", 1, &[])).unwrap();
    bed.create(spec("b", 1, &[])).unwrap();
    bed.create(spec("c", 1, &[])).unwrap();
    assert_eq!(bed.live("b")[0].node_id, "n2");
    assert_eq!(bed.live("c")[0].node_id, "n3");
}

#[test]
fn a_task_without_a_node_waits_and_says_why() {
    let mut bed = Bed::new(1);
    bed.update_node("n1", |spec| spec.set_availability(NodeAvailability::Pause));
    bed.create(spec("web", 1, &[])).unwrap();
    let task = bed.live("web").remove(0);
    assert_eq!(task.state(), TaskState::Pending);
    let err = "no suitable node (1 node not available for new tasks)";
    assert_eq!(task.status.unwrap().err, err);
    bed.update_node("n1", |spec| spec.set_availability(NodeAvailability::Active));
    let task = bed.live("web").remove(0);
    assert_eq!((task.state(), task.node_id.as_str()), (TaskState::Assigned, "n1"));
    assert_eq!(task.status.unwrap().err, "");
}

#[test]
fn many_waiting_tasks_are_placed_in_batches_of_a_size_when_a_node_comes() {
    let mut bed = Bed::with_subnet(1, "10.4.0.0/16");
    bed.update_node("n1", |spec| spec.set_availability(NodeAvailability::Pause));
    bed.create(spec("web", 2_500, &[])).unwrap();
    assert!(bed.live("web").iter().all(|task| task.state() == TaskState::Pending));
    bed.update_node("n1", |spec| spec.set_availability(NodeAvailability::Active));
    let placed = bed.live("web").iter().filter(|task| task.node_id == "n1").count();
    assert_eq!(placed, 2_500);
    // The objects that go with the tasks: service, network, cluster, node.
    let (changes, _) = bed.largest;
    assert!(changes <= crate::draft::ROOM + 4, "{changes}");
}
