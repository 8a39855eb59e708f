//! Sessions, heartbeats, statuses, and what nodes are sent.

use std::time::Duration;

use shoal_api::{
    Assignments, AssignmentsType, BackendState, NodeState, Task, TaskState, TaskStatus,
    assignment_change::Item,
};

use super::{Bed, beat, opened, session, spec};
use crate::{Control, Refusal};

fn state(bed: &Bed, node: &str) -> NodeState {
    bed.store.node(node).unwrap().state()
}

/// What was sent to a node since the last look.
fn sent_to(bed: &mut Bed, node: &str) -> Vec<Assignments> {
    let (of_node, others) =
        std::mem::take(&mut bed.sent).into_iter().partition(|(to, _)| *to == session(node));
    bed.sent = others;
    let of_node: Vec<(String, Assignments)> = of_node;
    of_node.into_iter().map(|(_, message)| message).collect()
}

fn backends(message: &Assignments) -> Vec<BackendState> {
    let items = message.changes.iter().filter(|change| !change.remove);
    let backends = items.filter_map(|change| match &change.item {
        Some(Item::Backend(backend)) => Some(backend.state()),
        _ => None,
    });
    backends.collect()
}

fn tasks(message: &Assignments) -> Vec<Task> {
    let items = message.changes.iter().filter_map(|change| match &change.item {
        Some(Item::Task(task)) => Some(task.clone()),
        _ => None,
    });
    items.collect()
}

fn running(nodes: u32, replicas: u64) -> Bed {
    let mut bed = Bed::new(nodes);
    bed.create(spec("web", replicas, &[(8080, 80)])).unwrap();
    bed.run_all("web");
    bed.pass(Duration::from_secs(1));
    bed.sent.clear();
    bed
}

#[test]
fn a_node_is_down_after_three_missed_heartbeats_and_not_before() {
    let mut bed = Bed::new(2);
    let n1 = ["n1".to_owned()];
    for _ in 0..29 {
        bed.now = bed.now + Duration::from_millis(100);
        bed.acknowledge(&n1);
    }
    assert_eq!(state(&bed, "n2"), NodeState::Ready);
    let deadline = bed.control.deadline().unwrap();
    bed.now = bed.now + Duration::from_millis(100);
    assert_eq!(deadline, bed.now);
    let step = bed.step(Vec::new());
    assert_eq!(state(&bed, "n2"), NodeState::Down);
    assert_eq!(state(&bed, "n1"), NodeState::Ready);
    let expired = Refusal::Expired { session_id: session("n2"), silent_ms: 3_000 };
    assert_eq!(step.closed, [(session("n2"), expired)]);
}

#[test]
fn a_new_session_makes_a_node_ready_again() {
    let mut bed = Bed::new(1);
    bed.now = bed.now + Duration::from_secs(10);
    bed.step(Vec::new());
    assert_eq!(state(&bed, "n1"), NodeState::Down);
    bed.open("n1");
    assert_eq!(state(&bed, "n1"), NodeState::Ready);
}

#[test]
fn a_new_leader_counts_from_the_last_sign_of_life() {
    let mut bed = Bed::new(2);
    let two_seconds_ago = bed.now - Duration::from_secs(2);
    let last_seen = [("n2".to_owned(), two_seconds_ago)].into();
    bed.control = Control::new(&bed.store, 9, bed.now, &last_seen);
    bed.now = bed.now + Duration::from_secs(1);
    bed.step(Vec::new());
    assert_eq!((state(&bed, "n1"), state(&bed, "n2")), (NodeState::Ready, NodeState::Down));
}

#[test]
fn a_newer_session_of_a_node_ends_the_older() {
    let mut bed = Bed::new(1);
    let step = bed.step(vec![opened("newer", "n1", "")]);
    let replaced = Refusal::Replaced { session_id: session("n1") };
    assert_eq!(step.closed, [(session("n1"), replaced)]);
    let step = bed.step(vec![beat("n1", 0)]);
    assert_eq!(step.closed.len(), 1, "the older one is unknown now");
}

#[test]
fn a_node_whose_arrival_was_lost_with_a_batch_is_still_watched() {
    let mut bed = Bed::new(2);
    let n1 = ["n1".to_owned()];
    let three_seconds = |bed: &mut Bed| {
        for _ in 0..30 {
            bed.now = bed.now + Duration::from_millis(100);
            bed.acknowledge(&n1);
        }
    };
    three_seconds(&mut bed);
    assert_eq!(state(&bed, "n2"), NodeState::Down);
    let opened = vec![opened(&session("n2"), "n2", "")];
    assert!(bed.control.step(&bed.store, opened, bed.now).batch.is_some());
    bed.control.lost();
    bed.step(Vec::new());
    assert_eq!(state(&bed, "n2"), NodeState::Ready);
    three_seconds(&mut bed);
    assert_eq!(state(&bed, "n2"), NodeState::Down);
}

#[test]
fn an_unknown_node_gets_no_session() {
    let mut bed = Bed::new(1);
    let step = bed.open("n7");
    let refusal = Refusal::NotFound { what: "node", id: "n7".into() };
    assert_eq!(step.closed, [(session("n7"), refusal)]);
}

#[test]
fn only_a_tasks_own_node_reports_it_and_only_forward() {
    let mut bed = Bed::new(2);
    bed.create(spec("web", 1, &[])).unwrap();
    let task = bed.live("web").remove(0);
    let status = |state: TaskState| TaskStatus { state: state.into(), ..TaskStatus::default() };
    let stored = |bed: &Bed| bed.store.task(&task.id).unwrap().state();
    bed.report_as("n2", &task, status(TaskState::Running));
    assert_eq!(stored(&bed), TaskState::Assigned);
    bed.report_as("n1", &task, status(TaskState::Running));
    assert_eq!(stored(&bed), TaskState::Running);
    bed.report_as("n1", &task, status(TaskState::Starting));
    assert_eq!(stored(&bed), TaskState::Running);
    bed.report_as("n1", &task, status(TaskState::Remove));
    assert_eq!(stored(&bed), TaskState::Running);
}

#[test]
fn a_session_gets_the_complete_set_first_and_then_changes() {
    let mut bed = Bed::new(2);
    let first = sent_to(&mut bed, "n2");
    assert_eq!((first[0].r#type(), first[0].applies_to), (AssignmentsType::Complete, 0));
    bed.create(spec("web", 1, &[(8080, 80)])).unwrap();
    let changes = sent_to(&mut bed, "n2");
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].r#type(), AssignmentsType::Changes);
    assert_eq!(changes[0].applies_to, first.last().unwrap().results_in);
    assert_eq!(changes[0].results_in, bed.store.index());
    assert_eq!(changes[0].changes.len(), 1, "the service: the task is another node's");
    bed.run_all("web");
    let changes = sent_to(&mut bed, "n2");
    assert_eq!(backends(&changes[0]), [BackendState::Active]);
    bed.pass(Duration::from_secs(2));
    assert_eq!(sent_to(&mut bed, "n2"), [], "nothing changed");
}

#[test]
fn a_tasks_own_report_is_not_sent_back() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[])).unwrap();
    let task = bed.live("web").remove(0);
    bed.sent.clear();
    bed.report(&task, TaskState::Preparing);
    assert_eq!(sent_to(&mut bed, "n1"), []);
}

#[test]
fn an_ended_task_leaves_the_routes_at_once() {
    let mut bed = running(2, 2);
    let task = bed.live("web").remove(0);
    bed.report(&task, TaskState::Failed);
    for node in ["n1", "n2"] {
        let message = sent_to(&mut bed, node).remove(0);
        let removed = |change: &shoal_api::AssignmentChange| match &change.item {
            Some(Item::Backend(backend)) => change.remove.then_some(backend.number),
            _ => None,
        };
        let removed: Vec<_> = message.changes.iter().filter_map(removed).collect();
        assert_eq!(removed, [task.attachments[0].backend]);
    }
}

#[test]
fn a_task_leaves_the_rings_of_all_nodes_before_it_is_told_to_stop() {
    let mut bed = running(2, 2);
    bed.update("web", |spec| spec.replicas = 1).unwrap();
    let index = bed.store.index();
    let leaving = bed.all("web").into_iter().find(|t| t.desired_state() == TaskState::Remove);
    let leaving = leaving.unwrap();
    let node = leaving.node_id.clone();
    let other = if node == "n1" { "n2" } else { "n1" };
    for node in [node.as_str(), other] {
        let message = sent_to(&mut bed, node).remove(0);
        assert_eq!(backends(&message), [BackendState::Draining]);
        assert_eq!(tasks(&message), []);
    }
    bed.acknowledge(std::slice::from_ref(&node));
    assert_eq!(sent_to(&mut bed, &node), [], "the other node still sends to it");
    bed.acknowledge(&[other.to_owned()]);
    let message = sent_to(&mut bed, &node).remove(0);
    let told = tasks(&message).remove(0);
    assert_eq!((told.id, told.desired_state), (leaving.id, TaskState::Remove as i32));
    assert_eq!(bed.store.index(), index, "no batch was needed for it");
}

#[test]
fn a_drain_does_not_wait_for_a_slow_node_for_ever() {
    let mut bed = running(2, 2);
    bed.update("web", |spec| spec.replicas = 1).unwrap();
    bed.sent.clear();
    let mut waited = Duration::ZERO;
    while bed.sent.iter().all(|(_, message)| tasks(message).is_empty()) {
        waited += Duration::from_millis(500);
        assert!(waited <= crate::assignments::DRAIN_TIMEOUT, "the task is told to stop");
        bed.now = bed.now + Duration::from_millis(500);
        bed.step(vec![beat("n1", 1), beat("n2", 1)]);
    }
    assert_eq!(waited, crate::assignments::DRAIN_TIMEOUT);
}

#[test]
fn progress_tells_who_lags() {
    let mut bed = running(2, 1);
    bed.create(spec("other", 1, &[(9090, 90)])).unwrap();
    bed.acknowledge(&["n1".to_owned()]);
    let progress = bed.control.progress(&bed.store);
    let lags: Vec<_> = progress.iter().map(|node| node.held_index < node.wanted_index).collect();
    assert_eq!(lags, [false, true]);
}

#[test]
fn a_lost_batch_is_made_again() {
    let mut bed = Bed::new(2);
    bed.now = bed.now + Duration::from_secs(5);
    let lost = bed.control.step(&bed.store, Vec::new(), bed.now);
    assert!(lost.batch.is_some() && lost.closed.len() == 2);
    bed.control.lost();
    let again = bed.control.step(&bed.store, Vec::new(), bed.now);
    assert_eq!(again.batch, lost.batch);
}

#[test]
fn tasks_of_a_node_that_is_down_for_a_day_are_given_up() {
    let mut bed = running(1, 1);
    bed.now = bed.now + Duration::from_secs(3);
    bed.step(Vec::new());
    bed.now = bed.now + Duration::from_secs(24 * 60 * 60);
    assert_eq!(bed.control.deadline(), Some(bed.now));
    bed.step(Vec::new());
    let states: Vec<_> = bed.all("web").iter().map(Task::state).collect();
    assert_eq!(states, [TaskState::Orphaned, TaskState::Pending]);
}
