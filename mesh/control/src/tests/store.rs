//! The store: all of a batch or nothing, versions, and snapshots.

use proptest::prelude::*;
use shoal_api::{
    Attachment, Batch, Change, EventAction, Meta, Node, Service, ServiceSpec, Task, TaskState,
    TaskStatus,
};

use crate::{Conflict, Store};

fn batch(changes: Vec<Change>) -> Batch {
    Batch { changes, now_ns: 5 }
}

fn task(id: &str, state: TaskState, address: &str) -> Task {
    let attachment =
        Attachment { network_id: "net".into(), address: address.into(), ..Attachment::default() };
    Task {
        id: id.into(),
        service_id: "s".into(),
        status: Some(TaskStatus { state: state.into(), ..TaskStatus::default() }),
        attachments: vec![attachment],
        ..Task::default()
    }
}

/// A store with one running task at version 1.
fn stored() -> (Store, Task) {
    let mut store = Store::default();
    let running = Task { node_id: "n1".into(), ..task("t", TaskState::Running, "10.0.0.2/24") };
    store.apply(1, &batch(vec![running.put()])).unwrap();
    let running = Task::clone(store.task("t").unwrap());
    (store, running)
}

fn check_refused(changes: Vec<Change>, expected: &str) {
    let (mut store, _) = stored();
    let before = store.clone();
    // A good change beside the bad one must not hold either.
    let good = Node { id: "good".into(), ..Node::default() }.put();
    let changes = std::iter::once(good).chain(changes).collect();
    let conflict = store.apply(2, &batch(changes)).expect_err("the batch is refused");
    assert_eq!(conflict.to_string(), expected);
    assert_eq!(store, before);
}

#[test]
fn a_write_is_stamped_and_told() {
    let (mut store, running) = stored();
    let meta = Meta { version: 1, created_at_ns: 5, updated_at_ns: 5 };
    assert_eq!(running.meta, Some(meta));
    let later = Batch { changes: vec![running.put()], now_ns: 9 };
    let events = store.apply(4, &later).unwrap();
    assert_eq!(events[0].action(), EventAction::Update);
    let meta = Meta { version: 4, created_at_ns: 5, updated_at_ns: 9 };
    assert_eq!(events[0].object.as_ref().unwrap().meta(), Some(&meta));
    assert_eq!(store.index(), 4);
    let removal = Task::clone(store.task("t").unwrap()).remove();
    let events = store.apply(5, &batch(vec![removal])).unwrap();
    assert_eq!(events[0].action(), EventAction::Remove);
    assert_eq!(store.tasks_of_service("s").count() + store.tasks_of_node("n1").count(), 0);
}

#[test]
fn a_stale_or_repeated_write_is_refused() {
    let (_, running) = stored();
    let stale = Task { meta: Some(Meta { version: 7, ..Meta::default() }), ..running.clone() };
    check_refused(vec![stale.clone().put()], "Task t is at version 1, not 7");
    check_refused(vec![stale.remove()], "Task t is at version 1, not 7");
    let new = Task { meta: None, ..running.clone() };
    check_refused(vec![new.put()], "Task t is at version 1, not 0");
    let gone = Task { id: "gone".into(), meta: None, ..Task::default() };
    check_refused(vec![gone.remove()], "Task gone is at version 0, not 0");
    check_refused(
        vec![running.clone().put(), running.put()],
        "Task t is changed twice in one batch",
    );
    check_refused(vec![Change::default()], "a change names no object that this release knows");
}

#[test]
fn a_task_goes_neither_back_nor_elsewhere() {
    let (_, running) = stored();
    let mut back = running.clone();
    back.status.as_mut().unwrap().set_state(TaskState::Starting);
    check_refused(vec![back.put()], "task t would go from state running back to starting");
    let moved = Task { node_id: "n2".into(), ..running };
    check_refused(vec![moved.put()], "task t would move from node n1 to \"n2\"");
}

#[test]
fn nothing_belongs_to_two() {
    check_refused(
        vec![task("u", TaskState::New, "10.0.0.2/24").put()],
        "address 10.0.0.2 on network net of u belongs to t",
    );
    let service = |id: &str, number| Service {
        id: id.into(),
        number,
        spec: Some(ServiceSpec { name: "web".into(), ..ServiceSpec::default() }),
        ..Service::default()
    };
    check_refused(
        vec![service("a", 1).put(), service("b", 2).put()],
        "service name web of b belongs to a",
    );
}

#[test]
fn what_one_gives_up_another_may_take_in_the_same_batch() {
    let (mut store, running) = stored();
    let next = task("a", TaskState::New, "10.0.0.2/24");
    store.apply(2, &batch(vec![next.put(), running.remove()])).unwrap();
    assert!(store.task("t").is_none() && store.task("a").is_some());
}

proptest! {
    #[test]
    fn a_snapshot_restores_to_the_same_store_and_a_batch_holds_wholly_or_not_at_all(
        batches in prop::collection::vec(
            prop::collection::vec((0_u8..6, 0_u8..5, 0_u64..4, prop::bool::ANY), 1..5),
            1..20,
        )
    ) {
        let mut store = Store::default();
        for (index, changes) in batches.into_iter().enumerate() {
            let changes = changes.into_iter().map(|(id, state, fresh, removal)| {
                let id = format!("t{id}");
                let version = match fresh {
                    0 => 0,
                    1 => 1,
                    _ => store.task(&id).map_or(0, |task| task.version()),
                };
                let state = [TaskState::New, TaskState::Assigned, TaskState::Running,
                    TaskState::Shutdown, TaskState::Failed][usize::from(state)];
                let address = format!("10.0.0.{}/24", 2 + (fresh + u64::from(removal)) % 3);
                let mut task = task(&id, state, &address);
                task.meta = Some(Meta { version, ..Meta::default() });
                if removal { task.remove() } else { task.put() }
            });
            let changes: Vec<_> = changes.collect();
            let before = store.clone();
            let count = changes.len();
            match store.apply(index as u64 + 1, &batch(changes)) {
                Ok(events) => prop_assert_eq!(events.len(), count),
                Err(Conflict::Unknown) => prop_assert!(false, "all changes are known"),
                Err(_) => prop_assert_eq!(&store, &before),
            }
            prop_assert_eq!(&Store::restore(store.snapshot()), &store);
        }
    }
}
