//! Addresses, numbers and ports belong to one object at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use shoal_api::TaskState;

use super::{Bed, beat, restart_after, spec};
use crate::Control;

fn addresses(bed: &Bed, name: &str) -> Vec<String> {
    let tasks = bed.live(name).into_iter();
    tasks.map(|task| task.attachments[0].address.clone()).collect()
}

#[test]
fn a_task_gets_address_mac_and_backend_number() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 2, &[])).unwrap();
    let tasks = bed.live("web");
    let attachment = &tasks[0].attachments[0];
    assert_eq!(attachment.network_id, bed.store.ingress_network().unwrap().id);
    assert_eq!(attachment.address, "10.0.0.2/24");
    assert_eq!(attachment.mac, "02:42:0a:00:00:02");
    assert_eq!(attachment.backend, 1);
    assert_eq!(tasks[1].attachments[0].address, "10.0.0.3/24");
}

#[test]
fn an_address_is_not_given_again_at_once_also_by_a_new_leader() {
    let mut bed = Bed::new(1);
    bed.create(spec("a", 2, &[])).unwrap();
    bed.remove("a").unwrap();
    for task in bed.all("a") {
        bed.report(&task, TaskState::Shutdown);
    }
    bed.pass(Duration::from_secs(1));
    assert_eq!(bed.store.tasks().count(), 0);
    bed.control = Control::new(&bed.store, 8, bed.now, &Default::default());
    bed.create(spec("b", 1, &[])).unwrap();
    assert_eq!(addresses(&bed, "b"), ["10.0.0.4/24"]);
}

#[test]
fn large_specs_come_in_batches_that_fit_in_a_message() {
    let mut bed = Bed::with_subnet(2, "10.4.0.0/16");
    let mut web = spec("web", 100, &[]);
    let task = web.task.as_mut().unwrap();
    task.container.as_mut().unwrap().env = vec![format!("NOTE={}", "x".repeat(60_000))];
    bed.create(web).unwrap();
    assert_eq!(bed.live("web").iter().filter(|task| !task.node_id.is_empty()).count(), 100);
    bed.update("web", |spec| spec.replicas = 0).unwrap();
    assert!(bed.live("web").is_empty());
    let (_, bytes) = bed.largest;
    assert!(bytes < 2 * crate::draft::ROOM_BYTES, "{bytes}");
}

#[test]
fn a_full_subnet_keeps_a_task_new_and_says_so_until_one_is_freed() {
    // A /29 has 8 addresses: without its own, the broadcast and the gateway, 5.
    let mut bed = Bed::with_subnet(1, "10.5.0.0/29");
    bed.create(spec("web", 6, &[])).unwrap();
    let waiting: Vec<_> =
        bed.live("web").into_iter().filter(|task| task.state() == TaskState::New).collect();
    assert_eq!(waiting.len(), 1);
    assert_eq!(
        waiting[0].status.as_ref().unwrap().err,
        "no address is free in network ingress (10.5.0.0/29): 5 of 5 in use"
    );
    bed.create(spec("other", 1, &[])).unwrap();
    bed.update("web", |spec| spec.replicas = 5).unwrap();
    assert_eq!(bed.live("web").iter().filter(|task| task.attachments.is_empty()).count(), 0);
    assert_eq!(bed.live("other")[0].state(), TaskState::New);
    bed.update("web", |spec| spec.replicas = 4).unwrap();
    let leaving = bed.all("web").into_iter().find(|task| task.desired_state() == TaskState::Remove);
    bed.report(&leaving.unwrap(), TaskState::Shutdown);
    bed.pass(Duration::from_secs(1));
    let served = &bed.live("other")[0];
    assert_eq!(served.state(), TaskState::Assigned);
    assert_eq!(served.status.as_ref().unwrap().err, "");
}

#[test]
fn a_tasks_end_is_known_to_every_node_before_its_address_goes_on() {
    let mut bed = Bed::with_subnet(2, "10.5.0.0/29");
    bed.create(spec("web", 5, &[])).unwrap();
    bed.run_all("web");
    bed.create(spec("next", 1, &[])).unwrap();
    bed.pass(Duration::from_secs(1));
    bed.update("web", |spec| spec.replicas = 4).unwrap();
    let leaving = bed.all("web").into_iter().find(|task| task.desired_state() == TaskState::Remove);
    let leaving = leaving.unwrap();
    bed.report(&leaving, TaskState::Shutdown);
    let held = bed.store.index();
    let address = |bed: &Bed| bed.live("next")[0].attachments.first().map(|a| a.address.clone());
    // The second node's kernel still sends packets there, and it lives.
    for _ in 0..10 {
        bed.now = bed.now + Duration::from_millis(500);
        bed.step(vec![beat("n1", bed.store.index()), beat("n2", held - 1)]);
    }
    assert_eq!(address(&bed), None);
    bed.step(vec![beat("n2", held)]);
    assert_eq!(address(&bed).as_ref(), Some(&leaving.attachments[0].address));
}

#[test]
fn a_batch_that_only_takes_away_leaves_its_time_behind() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[])).unwrap();
    bed.run_all("web");
    bed.pass(Duration::from_secs(1));
    bed.remove("web").unwrap();
    bed.report(&bed.all("web")[0].clone(), TaskState::Shutdown);
    bed.now = bed.now + Duration::from_secs(1);
    bed.acknowledge(&["n1".to_owned()]);
    assert_eq!(bed.store.tasks().count(), 0);
    assert_eq!(bed.cluster().meta.unwrap().updated_at_ns, bed.now.nanos());
}

#[test]
fn a_node_that_never_forgets_holds_nothing_up_for_ever() {
    let mut bed = Bed::new(2);
    bed.create(spec("web", 1, &[])).unwrap();
    bed.run_all("web");
    bed.remove("web").unwrap();
    bed.report(&bed.all("web")[0].clone(), TaskState::Shutdown);
    let beats = || vec![beat("n1", 0), beat("n2", 0)];
    for _ in 0..59 {
        bed.now = bed.now + Duration::from_secs(1);
        bed.step(beats());
        assert_eq!(bed.store.tasks().count(), 1);
    }
    bed.now = bed.now + Duration::from_secs(1);
    bed.step(beats());
    assert_eq!((bed.store.tasks().count(), bed.store.services().count()), (0, 0));
}

#[test]
fn history_gives_its_addresses_back_only_when_every_node_knows_that_the_tasks_ended() {
    let mut bed = Bed::with_subnet(1, "10.5.0.0/29");
    let mut web = spec("web", 3, &[]);
    web.task.as_mut().unwrap().restart = restart_after(Duration::ZERO);
    bed.create(web).unwrap();
    for _ in 0..2 {
        let task = bed.live("web").remove(0);
        bed.report(&task, TaskState::Failed);
    }
    // Three live and two ended tasks hold all five; the node has acknowledged nothing yet.
    let task = bed.live("web").remove(0);
    bed.report(&task, TaskState::Failed);
    assert_eq!(bed.live("web")[0].state(), TaskState::New);
    bed.pass(Duration::from_secs(1));
    assert_eq!(bed.live("web")[0].state(), TaskState::Assigned);
}

#[test]
fn ports_that_are_not_named_come_from_the_dynamic_range_and_stay() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[(0, 80), (0, 81)])).unwrap();
    let ports = |bed: &Bed| -> Vec<u32> {
        bed.service("web").ports.iter().map(|port| port.published_port).collect()
    };
    assert_eq!(ports(&bed), [30_000, 30_001]);
    bed.update("web", |spec| {
        spec.endpoint.as_mut().unwrap().ports.remove(0);
    })
    .unwrap();
    assert_eq!(ports(&bed), [30_001]);
    bed.create(spec("other", 1, &[(30_000, 80), (0, 80)])).unwrap();
    assert_eq!(bed.service("other").ports[1].published_port, 30_002);
}

#[test]
fn numbers_of_nodes_and_services_differ() {
    let mut bed = Bed::new(3);
    let nodes: Vec<_> = bed.store.nodes().map(|node| node.number).collect();
    assert_eq!(nodes, [1, 2, 3]);
    bed.create(spec("a", 0, &[])).unwrap();
    bed.create(spec("b", 0, &[])).unwrap();
    assert_eq!((bed.service("a").number, bed.service("b").number), (1, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_address_is_given_twice_whatever_comes_and_goes(
        steps in prop::collection::vec((0_u8..6, 0_usize..8, 0_u64..7), 1..60)
    ) {
        let mut bed = Bed::with_subnet(2, "10.5.0.0/28");
        for (at, (action, which, replicas)) in steps.into_iter().enumerate() {
            let name = format!("s{}", which % 3);
            let known = bed.store.service_by_name(&name).is_some();
            let tasks: Vec<_> = bed.store.tasks().map(|task| (**task).clone()).collect();
            let task = tasks.get(which * 3 % tasks.len().max(1));
            match (action, task) {
                (0, _) if !known => drop(bed.create(spec(&name, replicas, &[(0, 80)])).unwrap()),
                (0, _) => drop(bed.update(&name, |spec| spec.replicas = replicas).unwrap()),
                (1, _) if known => drop(bed.remove(&name).unwrap()),
                (2, Some(task)) => bed.report(task, TaskState::Running),
                (3, Some(task)) => bed.report(task, TaskState::Failed),
                (4, _) => bed.pass(Duration::from_secs(3)),
                (5, _) => {
                    bed.control = Control::new(&bed.store, at as u64, bed.now, &Default::default());
                    bed.open("n1");
                    bed.open("n2");
                }
                _ => {}
            }
            let attached = bed.store.tasks().flat_map(|task| task.attachments.clone());
            let attached: Vec<_> = attached.collect();
            let distinct = |key: fn(&shoal_api::Attachment) -> String| {
                attached.iter().map(key).collect::<BTreeSet<_>>().len()
            };
            prop_assert_eq!(distinct(|a| a.address.clone()), attached.len());
            prop_assert_eq!(distinct(|a| a.mac.clone()), attached.len());
            prop_assert_eq!(distinct(|a| a.backend.to_string()), attached.len());
            prop_assert!(attached.len() <= 13);
            for attachment in &attached {
                prop_assert!(attachment.address != "10.5.0.1/28", "the gateway's");
            }
        }
    }
}
