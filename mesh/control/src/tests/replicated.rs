//! Slots are filled, restarted, updated and emptied as the spec says.

use std::time::Duration;

use shoal_api::{NodeAvailability, RestartCondition, RestartPolicy, Task, TaskState};

use super::{Bed, restart_after, spec};

fn slots(tasks: &[Task]) -> Vec<u64> {
    tasks.iter().map(|task| task.slot).collect()
}

/// A running service on `nodes` nodes.
fn running(nodes: u32, replicas: u64) -> Bed {
    let mut bed = Bed::new(nodes);
    bed.create(spec("web", replicas, &[(8080, 80)])).unwrap();
    bed.run_all("web");
    bed.pass(Duration::from_secs(1));
    bed
}

#[test]
fn slots_are_numbered_from_one() {
    assert_eq!(slots(&running(2, 3).live("web")), [1, 2, 3]);
}

#[test]
fn an_ended_task_is_replaced_in_its_slot_after_the_delay() {
    let mut bed = running(1, 2);
    let old = bed.live("web").remove(0);
    bed.report(&old, TaskState::Failed);
    let new = bed.live("web").remove(0);
    assert_ne!(new.id, old.id);
    assert_eq!((new.slot, new.desired_state()), (1, TaskState::Ready));
    assert_eq!(new.start_after_ns, (bed.now + Duration::from_secs(5)).nanos());
    assert_eq!(bed.store.task(&old.id).unwrap().desired_state(), TaskState::Shutdown);
    bed.pass(Duration::from_millis(4_900));
    assert_eq!(bed.live("web")[0].desired_state(), TaskState::Ready);
    bed.pass(Duration::from_millis(100));
    assert_eq!(bed.live("web")[0].desired_state(), TaskState::Running);
}

#[test]
fn a_task_that_ends_before_its_start_is_replaced_once_its_delay_is_over() {
    let mut bed = running(1, 1);
    let first = bed.live("web").remove(0);
    bed.report(&first, TaskState::Failed);
    for _ in 0..3 {
        let waiting = bed.live("web").remove(0);
        bed.report(&waiting, TaskState::Rejected);
        bed.pass(Duration::from_millis(4_900));
        assert_eq!(bed.live("web")[0].id, waiting.id);
        bed.pass(Duration::from_millis(100));
        let next = bed.live("web").remove(0);
        assert_ne!(next.id, waiting.id);
        assert_eq!(next.start_after_ns, (bed.now + Duration::from_secs(5)).nanos());
    }
}

#[test]
fn without_a_delay_the_replacement_may_run_in_the_same_batch() {
    let mut bed = Bed::new(1);
    let mut web = spec("web", 1, &[]);
    web.task.as_mut().unwrap().restart = restart_after(Duration::ZERO);
    bed.create(web).unwrap();
    bed.run_all("web");
    let index = bed.store.index();
    let old = bed.live("web").remove(0);
    bed.report(&old, TaskState::Failed);
    assert_eq!(bed.store.index(), index + 1);
    let new = bed.live("web").remove(0);
    assert_eq!((new.desired_state(), new.state()), (TaskState::Running, TaskState::Assigned));
}

fn check_restart(condition: RestartCondition, ended: TaskState, restarted: bool) {
    let mut bed = Bed::new(1);
    let mut web = spec("web", 1, &[]);
    let policy = RestartPolicy { condition: condition.into(), delay_ns: Some(0) };
    web.task.as_mut().unwrap().restart = Some(policy);
    bed.create(web).unwrap();
    let task = bed.live("web").remove(0);
    bed.report(&task, ended);
    bed.pass(Duration::from_secs(10));
    assert_eq!(bed.live("web").len() == 1, restarted, "{condition:?} {ended:?}");
    assert_eq!(bed.all("web").len(), if restarted { 2 } else { 1 }, "{condition:?} {ended:?}");
}

#[test]
fn the_restart_policy_decides() {
    check_restart(RestartCondition::Any, TaskState::Complete, true);
    check_restart(RestartCondition::Any, TaskState::Rejected, true);
    check_restart(RestartCondition::OnFailure, TaskState::Complete, false);
    check_restart(RestartCondition::OnFailure, TaskState::Failed, true);
    check_restart(RestartCondition::None, TaskState::Failed, false);
}

#[test]
fn tasks_of_a_lost_node_are_replaced_at_once_and_not_doubled_when_it_comes_back() {
    let mut bed = running(3, 3);
    let lost = bed.live("web").into_iter().find(|task| task.node_id == "n3").unwrap();
    let others = ["n1".to_owned(), "n2".to_owned()];
    for _ in 0..3 {
        bed.now = bed.now + Duration::from_secs(1);
        bed.acknowledge(&others);
    }
    let live = bed.live("web");
    assert_eq!(slots(&live), [1, 2, 3]);
    assert!(live.iter().all(|task| task.node_id != "n3"));
    assert!(live.iter().all(|task| task.desired_state() == TaskState::Running));
    bed.open("n3");
    bed.run_all("web");
    assert_eq!(slots(&bed.live("web")), [1, 2, 3]);
    let old = bed.store.task(&lost.id).unwrap();
    assert_eq!((old.state(), old.desired_state()), (TaskState::Running, TaskState::Shutdown));
}

#[test]
fn a_drained_node_is_emptied_and_a_paused_one_is_not() {
    let mut bed = running(2, 2);
    bed.update_node("n1", |spec| spec.set_availability(NodeAvailability::Pause));
    assert!(bed.live("web").iter().any(|task| task.node_id == "n1"));
    bed.update_node("n1", |spec| spec.set_availability(NodeAvailability::Drain));
    let live = bed.live("web");
    assert!(live.iter().all(|task| task.node_id == "n2"));
    assert!(live.iter().all(|task| task.desired_state() == TaskState::Running));
}

#[test]
fn scaling_down_takes_tasks_that_do_not_run_first() {
    let mut bed = running(2, 2);
    bed.update("web", |spec| spec.replicas = 4).unwrap();
    let of_slot = |bed: &Bed, slot| bed.live("web").into_iter().find(|t| t.slot == slot).unwrap();
    let fourth = of_slot(&bed, 4);
    bed.report(&fourth, TaskState::Running);
    bed.update("web", |spec| spec.replicas = 3).unwrap();
    assert_eq!(slots(&bed.live("web")), [1, 2, 4]);
    bed.update("web", |spec| spec.replicas = 4).unwrap();
    assert_eq!(slots(&bed.live("web")), [1, 2, 3, 4]);
}

#[test]
fn scaling_down_takes_from_the_fullest_node_then_the_highest_slot() {
    let mut bed = running(2, 5);
    let on = |bed: &Bed, node: &str| bed.live("web").iter().filter(|t| t.node_id == node).count();
    assert_eq!((on(&bed, "n1"), on(&bed, "n2")), (3, 2));
    bed.update("web", |spec| spec.replicas = 2).unwrap();
    assert_eq!((on(&bed, "n1"), on(&bed, "n2")), (1, 1));
    assert_eq!(slots(&bed.live("web")), [1, 2]);
}

#[test]
fn a_removed_service_goes_when_its_tasks_ended() {
    let mut bed = running(2, 2);
    let id = bed.service("web").id;
    bed.remove("web").unwrap();
    let tasks = bed.all("web");
    assert!(tasks.iter().all(|task| task.desired_state() == TaskState::Remove));
    bed.report(&tasks[0], TaskState::Shutdown);
    assert!(bed.store.service(&id).is_some());
    bed.report(&tasks[1], TaskState::Shutdown);
    bed.pass(Duration::from_secs(1));
    assert!(bed.store.service(&id).is_none());
    assert_eq!(bed.store.tasks().count(), 0);
}

#[test]
fn an_update_replaces_one_slot_at_a_time_old_before_new() {
    let mut bed = running(2, 2);
    bed.update("web", |spec| spec.task.as_mut().unwrap().force_update = 1).unwrap();
    let changed = |bed: &Bed| {
        bed.live("web").into_iter().filter(|task| task.spec_version == 2).collect::<Vec<_>>()
    };
    assert_eq!(slots(&changed(&bed)), [1]);
    bed.pass(Duration::from_secs(2));
    assert_eq!(changed(&bed)[0].desired_state(), TaskState::Ready, "the old one still runs");
    let stopping = bed.all("web").remove(0);
    bed.report(&stopping, TaskState::Shutdown);
    assert_eq!(changed(&bed)[0].desired_state(), TaskState::Running);
    assert_eq!(changed(&bed).len(), 1, "the first does not run yet");
    bed.run_all("web");
    assert_eq!(slots(&changed(&bed)), [1, 2]);
}

#[test]
fn an_update_replaces_tasks_without_a_node_at_once_and_leaves_nothing_of_them() {
    let mut bed = Bed::new(1);
    bed.update_node("n1", |spec| spec.set_availability(NodeAvailability::Pause));
    bed.create(spec("web", 3, &[])).unwrap();
    bed.update("web", |spec| spec.task.as_mut().unwrap().force_update = 1).unwrap();
    let tasks = bed.all("web");
    assert_eq!(slots(&tasks), [1, 2, 3]);
    assert!(tasks.iter().all(|t| t.spec_version == 2 && t.state() == TaskState::Pending));
}

#[test]
fn a_changed_replica_count_replaces_nothing() {
    let mut bed = running(1, 2);
    let before: Vec<_> = bed.live("web").into_iter().map(|task| task.id).collect();
    bed.update("web", |spec| spec.replicas = 3).unwrap();
    let after: Vec<_> = bed.live("web").into_iter().map(|task| task.id).collect();
    assert_eq!(after[..2], before);
}

#[test]
fn a_slot_keeps_five_old_tasks() {
    let mut bed = Bed::new(1);
    let mut web = spec("web", 1, &[]);
    web.task.as_mut().unwrap().restart = restart_after(Duration::ZERO);
    bed.create(web).unwrap();
    for _ in 0..9 {
        bed.now = bed.now + Duration::from_millis(1);
        let task = bed.live("web").remove(0);
        bed.report(&task, TaskState::Failed);
        bed.acknowledge(&["n1".to_owned()]);
    }
    assert_eq!(bed.all("web").len(), 6);
    assert_eq!(bed.live("web").len(), 1);
}

#[test]
fn a_large_service_comes_in_several_batches_and_completely() {
    let mut bed = Bed::with_subnet(3, "10.0.0.0/16");
    let index = bed.store.index();
    bed.create(spec("web", 3_500, &[])).unwrap();
    assert!(bed.store.index() >= index + 3);
    assert_eq!(bed.live("web").len(), 3_500);
    assert!(bed.live("web").iter().all(|task| task.state() == TaskState::Assigned));
    bed.update("web", |spec| spec.replicas = 0).unwrap();
    assert_eq!(bed.live("web").len(), 0);
}
