//! What follows from assignments, and what does not.

use shoal_api::PortConfig;

use super::*;

fn node(number: u32, id: &str, address: &str) -> Item {
    Item::Node(RouteNode { number, node_id: id.into(), data_path_addr: address.into() })
}

fn service(number: u32, name: &str, ports: &[(Protocol, u32, u32)]) -> Item {
    let port = |(protocol, published_port, target_port): &(Protocol, u32, u32)| PortConfig {
        protocol: (*protocol).into(),
        target_port: *target_port,
        published_port: *published_port,
    };
    Item::Service(RouteService {
        number,
        service_id: format!("{name}-id"),
        name: name.into(),
        ports: ports.iter().map(port).collect(),
    })
}

fn backend(number: u32, service: u32, node: u32, state: BackendState) -> Item {
    Item::Backend(RouteBackend {
        number,
        task_id: format!("task{number}"),
        service,
        node,
        address: format!("10.0.0.{number}"),
        mac: format!("02:42:0a:00:00:{number:02x}"),
        state: state.into(),
    })
}

fn changes(kind: AssignmentsType, from: u64, to: u64, items: Vec<(bool, Item)>) -> Assignments {
    Assignments {
        r#type: kind.into(),
        applies_to: from,
        results_in: to,
        changes: items
            .into_iter()
            .map(|(remove, item)| AssignmentChange { remove, item: Some(item) })
            .collect(),
    }
}

fn complete(items: Vec<Item>) -> Assignments {
    let items = items.into_iter().map(|item| (false, item)).collect();
    changes(AssignmentsType::Complete, 0, 10, items)
}

/// Two nodes, `web` on port 8080 with a task on each.
fn web() -> State {
    let mut state = State::default();
    let items = vec![
        node(1, "n1", "10.88.0.1"),
        node(2, "n2", "10.88.0.2"),
        service(5, "web", &[(Protocol::Tcp, 8080, 80)]),
        backend(7, 5, 1, BackendState::Active),
        backend(8, 5, 2, BackendState::Active),
    ];
    state.apply(&complete(items)).unwrap();
    state
}

fn then(state: &mut State, items: Vec<(bool, Item)>) {
    let held = state.index();
    state.apply(&changes(AssignmentsType::Changes, held, held + 1, items)).unwrap();
}

fn owners(plan: &Plan, service: u16) -> Vec<u16> {
    let mut owners: Vec<u16> = plan.rings[&service].iter().map(|slot| slot.backend).collect();
    owners.sort_unstable();
    owners.dedup();
    owners
}

#[test]
fn a_published_service_gets_frontend_ring_backends_and_nodes() {
    let mut state = web();
    let plan = state.plan("n2");
    assert_eq!((plan.index, plan.node), (10, 2));
    let frontend = Frontend { service: 5, target_port: 80, flags: 0 };
    assert_eq!(plan.frontends, BTreeMap::from([(8080, frontend)]));
    assert_eq!(owners(&plan, 5), [7, 8]);
    let address = address_bytes("10.0.0.8".parse().unwrap());
    let mac = [2, 0x42, 10, 0, 0, 8];
    assert_eq!(plan.backends[&8], Backend { address, mac, node: 2 });
    assert_eq!(plan.nodes[&1], address_bytes("10.88.0.1".parse().unwrap()));
    assert_eq!(state.problems(), []);
}

#[test]
fn tcp_and_udp_have_their_own_ports() {
    assert_eq!(frontend_key(Protocol::Tcp, 53), 53);
    assert_eq!(frontend_key(Protocol::Udp, 53), 65_536 + 53);
}

#[test]
fn every_node_computes_the_same_ring() {
    assert_eq!(web().plan("n1").rings, web().plan("n2").rings);
}

#[test]
fn changes_that_do_not_follow_are_refused_and_change_nothing() {
    let mut state = web();
    let before = state.plan("n1");
    let late = changes(AssignmentsType::Changes, 11, 12, vec![(true, node(1, "n1", ""))]);
    assert_eq!(state.apply(&late), Err(Gap { held: 10, applies_to: 11 }));
    assert_eq!(state.plan("n1"), before);
}

#[test]
fn a_full_set_replaces_all() {
    let mut state = web();
    state.apply(&complete(vec![node(3, "n3", "10.88.0.3")])).unwrap();
    let plan = state.plan("n3");
    assert_eq!((plan.node, plan.nodes.len()), (3, 1));
    assert!(plan.frontends.is_empty() && plan.rings.is_empty() && plan.backends.is_empty());
}

#[test]
fn a_ring_is_computed_again_only_when_its_members_change() {
    let mut state = web();
    let first = state.plan("n1");
    let more = vec![
        (false, service(6, "api", &[(Protocol::Udp, 53, 53)])),
        (false, backend(9, 6, 1, BackendState::Active)),
    ];
    then(&mut state, more);
    let second = state.plan("n1");
    assert!(Arc::ptr_eq(&first.rings[&5], &second.rings[&5]));
    assert_eq!(second.frontends[&(65_536 + 53)].service, 6);
    then(&mut state, vec![(true, backend(8, 5, 2, BackendState::Active))]);
    assert_eq!(owners(&state.plan("n1"), 5), [7]);
}

#[test]
fn a_draining_backend_stays_reachable_and_owns_no_slot() {
    let mut state = web();
    then(&mut state, vec![(false, backend(8, 5, 2, BackendState::Draining))]);
    let plan = state.plan("n1");
    assert_eq!(owners(&plan, 5), [7]);
    assert!(plan.rings[&5].iter().any(|slot| slot.alternate == 8));
    assert!(plan.backends.contains_key(&8));
}

#[test]
fn a_service_whose_backends_all_drain_keeps_serving() {
    let mut state = web();
    let drain = [7, 8].map(|n| (false, backend(n, 5, n - 6, BackendState::Draining)));
    then(&mut state, drain.to_vec());
    assert_eq!(owners(&state.plan("n1"), 5), [7, 8]);
}

#[test]
fn a_service_without_backends_has_no_frontend() {
    let mut state = web();
    then(&mut state, [7, 8].map(|n| (true, backend(n, 5, 0, BackendState::Active))).to_vec());
    let plan = state.plan("n1");
    assert!(plan.frontends.is_empty() && plan.rings.is_empty());
}

#[test]
fn a_backend_on_an_unknown_node_is_left_out() {
    let mut state = web();
    then(&mut state, vec![(true, node(2, "n2", ""))]);
    let plan = state.plan("n1");
    assert_eq!(owners(&plan, 5), [7]);
    assert!(!plan.backends.contains_key(&8));
    assert_eq!(state.problems(), [Problem::NodeUnknown { task_id: "task8".into(), node: 2 }]);
}

#[test]
fn a_node_without_a_number_of_its_own_has_no_frontends() {
    let plan = web().plan("n9");
    assert_eq!(plan.node, 0);
    assert!(plan.frontends.is_empty() && plan.rings.is_empty());
    assert_eq!(plan.nodes.len(), 2);
}

#[test]
fn a_port_belongs_to_the_service_with_the_lower_number() {
    let mut state = web();
    let more = vec![
        (false, service(6, "late", &[(Protocol::Tcp, 8080, 81), (Protocol::Tcp, 9090, 81)])),
        (false, backend(9, 6, 1, BackendState::Active)),
    ];
    then(&mut state, more);
    let plan = state.plan("n1");
    assert_eq!((plan.frontends[&8080].service, plan.frontends[&9090].service), (5, 6));
    let taken = Problem::PortTaken { name: "late".into(), port: 8080, owner: 5 };
    assert_eq!(state.problems(), [taken]);
}

#[test]
fn what_no_table_can_hold_is_left_out_and_named() {
    let mut state = web();
    let mut bad = |edit: fn(&mut RouteBackend), number| {
        let Item::Backend(mut item) = backend(number, 5, 1, BackendState::Active) else {
            unreachable!("made by backend()");
        };
        edit(&mut item);
        then(&mut state, vec![(false, Item::Backend(item))]);
    };
    bad(|item| item.address = "10.0.0".into(), 20);
    bad(|item| item.address = "0.0.0.0".into(), 21);
    bad(|item| item.mac = "02:42:0a:00:00".into(), 22);
    bad(|item| item.mac = "00:00:00:00:00:00".into(), 23);
    bad(|item| item.mac = "03:00:00:00:00:01".into(), 24);
    bad(|item| item.mac = "02:42:0a:00:00:01:02".into(), 25);
    bad(|item| item.mac = "+2:42:0a:00:00:01".into(), 26);
    bad(|item| item.number = 65_543, 65_543);
    bad(|item| item.number = 0, 0);
    then(&mut state, vec![(false, node(4096, "far", "10.88.0.9"))]);
    then(&mut state, vec![(false, node(4, "n4", "host.example"))]);
    let ports = [(Protocol::Tcp, 0, 80), (Protocol::Tcp, 70_000, 80), (Protocol::Tcp, 81, 0)];
    then(&mut state, vec![(false, service(5, "web", &ports))]);
    then(&mut state, vec![(false, service(70_000, "far", &ports))]);
    let plan = state.plan("n1");
    assert_eq!(plan.backends.keys().copied().collect::<Vec<_>>(), [7, 8]);
    assert_eq!(plan.nodes.len(), 2);
    assert!(plan.frontends.is_empty());
    assert_eq!(state.problems().len(), 9 + 2 + 3 + 1);
}
