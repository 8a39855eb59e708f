//! From any plan to any plan: the end is right, and so is every moment on the way.

use proptest::prelude::*;

use super::*;

/// A ring as short as a test can be read.
const SLOTS: usize = 5;

fn address(number: u8) -> Address {
    let mut address = Address::default();
    address[15] = number;
    address
}

/// A task is known by its MAC, which no other task ever has; its service and node go with it.
fn task(id: u8) -> Backend {
    let node = 1 + u16::from(id) % 4;
    Backend { address: address(id), mac: [2, 0, 0, 0, 0, id], node }
}

/// Plans as `State` makes them, from few numbers, so that two of them use the same numbers for
/// different things.
fn plans() -> impl Strategy<Value = Plan> {
    let nodes = prop::collection::vec(1..=6_u8, 4);
    let backends = prop::collection::btree_map(1..=6_u16, 0..40_u8, 0..6);
    let owners = prop::collection::vec((1..=3_u16, any::<bool>()), 6);
    let ports = prop::collection::btree_map(80..=84_u32, (1..=3_u16, 1..=2_u16), 0..5);
    let slots = prop::collection::vec(any::<prop::sample::Index>(), SLOTS * 2);
    let parts = (nodes, backends, owners, ports, slots, 1..=2_u16);
    parts.prop_map(|(nodes, tasks, owners, ports, picks, node)| {
        let mut plan = Plan { node, ..Plan::default() };
        for (number, id) in (1..).zip(nodes) {
            plan.nodes.insert(number, address(id));
        }
        for (number, id) in &tasks {
            plan.backends.insert(*number, task(*id));
        }
        for service in 1..=3_u16 {
            let mine = |active: bool| -> Vec<u16> {
                let owned = |number: &u16| {
                    let (owner, is_active) = owners[usize::from(*number) - 1];
                    owner == service && is_active == active
                };
                tasks.keys().copied().filter(owned).collect()
            };
            let (active, draining) = (mine(true), mine(false));
            if active.is_empty() {
                continue;
            }
            let ring = picks.chunks(2).map(|pick| Slot {
                backend: active[pick[0].index(active.len())],
                alternate: if draining.is_empty() {
                    0
                } else {
                    draining[pick[1].index(draining.len())]
                },
            });
            plan.rings.insert(service, Arc::new(ring.collect()));
        }
        for (port, (service, target_port)) in ports {
            if plan.rings.contains_key(&service) {
                plan.frontends.insert(port, Frontend { service, target_port, flags: 0 });
            }
        }
        plan
    })
}

/// What the packets of a port can meet: task and address of its node, by slot and role.
fn meets(plan: &Plan, port: u32) -> Vec<(Backend, Address)> {
    let frontend = plan.frontends[&port];
    let ring = plan.rings.get(&frontend.service).expect("each frontend has a ring");
    let named = ring.iter().flat_map(|slot| {
        assert_ne!(slot.backend, 0, "no slot is empty");
        [slot.backend, slot.alternate]
    });
    let found = named.filter(|number| *number != 0).map(|number| {
        let backend = *plan.backends.get(&number).expect("each slot names a backend");
        let node = *plan.nodes.get(&backend.node).expect("each backend's node exists");
        (backend, node)
    });
    found.collect()
}

/// A packet may meet a task that the port stood for before or stands for after, at an address that
/// its node had before or has after.
fn check(now: &Plan, held: &Plan, want: &Plan) {
    for (port, frontend) in &now.frontends {
        let ends: Vec<&Plan> = [held, want]
            .into_iter()
            .filter(|end| end.frontends.get(port).is_some_and(|f| f.service == frontend.service))
            .collect();
        for (backend, node) in meets(now, *port) {
            let mine = ends.iter().any(|end| meets(end, *port).iter().any(|(b, _)| *b == backend));
            assert!(mine, "port {port} leads to {backend:?}, which it never stood for");
            let right = [held, want].iter().any(|end| {
                end.backends.values().any(|known| *known == backend)
                    && end.nodes.get(&backend.node) == Some(&node)
            });
            assert!(right, "{backend:?} is looked for at {node:?}, where it never was");
        }
        let local = now.node == held.node || now.node == want.node;
        assert!(local, "the own number is one of both");
    }
}

#[test]
fn equal_plans_need_no_step() {
    let mut plan = Plan { index: 1, node: 1, ..Plan::default() };
    plan.nodes.insert(1, address(1));
    let other = Plan { index: 2, ..plan.clone() };
    assert_eq!(diff(&plan, &other), []);
}

#[test]
fn a_first_service_comes_node_backend_ring_frontend_and_leaves_the_other_way() {
    let empty = Plan { node: 1, ..Plan::default() };
    let mut full = empty.clone();
    let ring = Arc::new(vec![Slot { backend: 3, alternate: 0 }; SLOTS]);
    let frontend = Frontend { service: 9, target_port: 80, flags: 0 };
    full.nodes.insert(4, address(1));
    full.backends.insert(3, task(3));
    full.rings.insert(9, Arc::clone(&ring));
    full.frontends.insert(80, frontend);
    let up = [
        Step::PutNode(4, address(1)),
        Step::PutBackend(3, task(3)),
        Step::PutRing(9, ring),
        Step::PutFrontend(80, frontend),
    ];
    assert_eq!(diff(&empty, &full), up);
    let down = [Step::DropFrontend(80), Step::DropRing(9), Step::DropBackend(3), Step::DropNode(4)];
    assert_eq!(diff(&full, &empty), down);
}

#[test]
fn a_number_used_again_leaves_the_ring_first() {
    let mut held = Plan { node: 1, ..Plan::default() };
    for number in 1..=4 {
        held.nodes.insert(number, address(1));
    }
    held.backends.extend([(1, task(10)), (2, task(11))]);
    let both = [1, 2, 1, 2, 1].map(|backend| Slot { backend, alternate: 0 });
    held.rings.insert(9, Arc::new(both.to_vec()));
    held.frontends.insert(80, Frontend { service: 9, target_port: 80, flags: 0 });
    let mut want = held.clone();
    want.backends.insert(2, task(12));
    let only_one = Arc::new(vec![Slot { backend: 1, alternate: 0 }; SLOTS]);
    let steps = [
        Step::PutRing(9, only_one),
        Step::PutBackend(2, task(12)),
        Step::PutRing(9, Arc::clone(&want.rings[&9])),
    ];
    assert_eq!(diff(&held, &want), steps);
}

#[test]
fn a_frontend_with_nothing_to_stand_in_is_away_for_a_moment() {
    let mut held = Plan { node: 1, ..Plan::default() };
    held.nodes.extend((1..=4).map(|number| (number, address(1))));
    held.backends.insert(1, task(10));
    held.rings.insert(9, Arc::new(vec![Slot { backend: 1, alternate: 0 }; SLOTS]));
    let frontend = Frontend { service: 9, target_port: 80, flags: 0 };
    held.frontends.insert(80, frontend);
    let mut want = held.clone();
    want.backends.insert(1, task(11));
    let steps =
        [Step::DropFrontend(80), Step::PutBackend(1, task(11)), Step::PutFrontend(80, frontend)];
    assert_eq!(diff(&held, &want), steps);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_step_keeps_every_frontend_right(held in plans(), want in plans()) {
        let steps = diff(&held, &want);
        let mut now = held.clone();
        check(&now, &held, &want);
        for step in &steps {
            apply(&mut now, [step]);
            check(&now, &held, &want);
        }
        prop_assert_eq!(&now, &want);
        prop_assert_eq!(diff(&now, &want), []);
    }

    /// A plan found in a kernel after a crash or a stranger's hand.
    #[test]
    fn the_end_is_right_wherever_it_starts(
        mut held in plans(), want in plans(), lost in prop::collection::vec(1..=6_u16, 0..6),
    ) {
        for number in lost {
            held.backends.remove(&number);
            held.nodes.remove(&number.wrapping_sub(2));
            held.rings.remove(&number.wrapping_sub(4));
        }
        let steps = diff(&held, &want);
        apply(&mut held, &steps);
        prop_assert_eq!(held, want);
    }
}
