//! From what the kernel holds to what it must hold, step by step.
//!
//! After every step, each frontend has a ring whose slots name backends that exist and belong to
//! the frontend's service, on nodes that exist. Additions go node, backend, ring, frontend;
//! removals go the other way. Numbers are used again, so a number whose meaning changes first
//! leaves every ring: such rings stand in without it for a moment. A frontend with nothing to
//! stand in, or one that moves to another service, is away for that moment: the host answers with
//! a reset, which is better than the wrong task's answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_datapath::abi::{Address, Backend, Frontend, Slot};

use crate::plan::Plan;

/// One write to one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This node's own number.
    Own(u16),
    /// Adds or replaces a node's data-path address.
    PutNode(u16, Address),
    /// Removes a node.
    DropNode(u16),
    /// Adds or replaces a backend.
    PutBackend(u16, Backend),
    /// Removes a backend.
    DropBackend(u16),
    /// Adds or replaces a service's ring.
    PutRing(u16, Arc<Vec<Slot>>),
    /// Removes a service's ring.
    DropRing(u16),
    /// Publishes a port, or changes what it stands for.
    PutFrontend(u32, Frontend),
    /// Takes a published port back.
    DropFrontend(u32),
}

/// How a wanted ring gets in place.
enum Passage {
    /// In one step.
    Direct,
    /// This one stands in until the changed numbers have their new meaning.
    StandIn(Arc<Vec<Slot>>),
    /// No backend of it could be named yet: its frontends go away and come back.
    Dark,
}

/// The steps that make `held` equal to `want`, in the safe order.
///
/// `want` is a plan of [`State`](crate::State): its rings name its backends, which name its nodes.
/// `held` may be anything that was found in a kernel. The plans' indices are not looked at.
#[must_use]
pub fn diff(held: &Plan, want: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    let passages: BTreeMap<u16, Passage> =
        want.rings.iter().map(|(service, ring)| (*service, passage(held, want, ring))).collect();
    let dark = |service: u16| matches!(passages.get(&service), Some(Passage::Dark));
    // The own number tells local backends from remote ones, so it changes under no frontend.
    let all_dark = held.node != want.node;

    // What must not be met any more.
    let mut away = BTreeSet::new();
    for (key, frontend) in &held.frontends {
        let stays = want.frontends.get(key).is_some_and(|next| next.service == frontend.service);
        if !stays || all_dark || dark(frontend.service) {
            away.insert(*key);
            steps.push(Step::DropFrontend(*key));
        }
    }
    for service in held.rings.keys().filter(|service| !want.rings.contains_key(service)) {
        steps.push(Step::DropRing(*service));
    }
    if all_dark {
        steps.push(Step::Own(want.node));
    }

    // Numbers that had no meaning, then rings.
    for (number, address) in &want.nodes {
        if !held.nodes.contains_key(number) {
            steps.push(Step::PutNode(*number, *address));
        }
    }
    for (number, backend) in &want.backends {
        if !held.backends.contains_key(number) && ready(held, want, *number) {
            steps.push(Step::PutBackend(*number, *backend));
        }
    }
    let mut last_rings = Vec::new();
    for (service, ring) in &want.rings {
        let same = held.rings.get(service).is_some_and(|held| same_ring(held, ring));
        match &passages[service] {
            Passage::Direct if same => {}
            Passage::Direct => steps.push(Step::PutRing(*service, Arc::clone(ring))),
            Passage::StandIn(stand_in) => {
                steps.push(Step::PutRing(*service, Arc::clone(stand_in)));
                last_rings.push(Step::PutRing(*service, Arc::clone(ring)));
            }
            Passage::Dark if same => {}
            Passage::Dark => last_rings.push(Step::PutRing(*service, Arc::clone(ring))),
        }
    }

    // No frontend leads to a number whose meaning changes: it can.
    for number in held.backends.keys().filter(|number| !want.backends.contains_key(number)) {
        steps.push(Step::DropBackend(*number));
    }
    for (number, address) in &want.nodes {
        if held.nodes.get(number).is_some_and(|held| held != address) {
            steps.push(Step::PutNode(*number, *address));
        }
    }
    for (number, backend) in &want.backends {
        let fresh = !held.backends.contains_key(number);
        if held.backends.get(number) != Some(backend) && !(fresh && ready(held, want, *number)) {
            steps.push(Step::PutBackend(*number, *backend));
        }
    }
    steps.append(&mut last_rings);

    for (key, frontend) in &want.frontends {
        if held.frontends.get(key) != Some(frontend) || away.contains(key) {
            steps.push(Step::PutFrontend(*key, *frontend));
        }
    }
    for number in held.nodes.keys().filter(|number| !want.nodes.contains_key(number)) {
        steps.push(Step::DropNode(*number));
    }
    steps
}

/// Does the steps on a plan, as a kernel would on its tables.
pub fn apply<'a>(held: &mut Plan, steps: impl IntoIterator<Item = &'a Step>) {
    for step in steps {
        match step {
            Step::Own(number) => held.node = *number,
            Step::PutNode(number, address) => drop(held.nodes.insert(*number, *address)),
            Step::DropNode(number) => drop(held.nodes.remove(number)),
            Step::PutBackend(number, backend) => drop(held.backends.insert(*number, *backend)),
            Step::DropBackend(number) => drop(held.backends.remove(number)),
            Step::PutRing(service, ring) => drop(held.rings.insert(*service, Arc::clone(ring))),
            Step::DropRing(service) => drop(held.rings.remove(service)),
            Step::PutFrontend(key, frontend) => drop(held.frontends.insert(*key, *frontend)),
            Step::DropFrontend(key) => drop(held.frontends.remove(key)),
        }
    }
}

/// Whether a ring may name this backend before any number changes its meaning.
fn ready(held: &Plan, want: &Plan, backend: u16) -> bool {
    let Some(next) = want.backends.get(&backend) else { return false };
    match held.backends.get(&backend) {
        Some(now) => now == next,
        // A number without a meaning gets one at once, unless its node's number still means
        // another address.
        None => {
            held.nodes.get(&next.node).is_none_or(|now| want.nodes.get(&next.node) == Some(now))
        }
    }
}

fn passage(held: &Plan, want: &Plan, ring: &[Slot]) -> Passage {
    let named: BTreeSet<u16> =
        ring.iter().flat_map(|slot| [slot.backend, slot.alternate]).filter(|n| *n != 0).collect();
    let ready: BTreeSet<u16> = named.iter().copied().filter(|n| ready(held, want, *n)).collect();
    if ready.len() == named.len() {
        return Passage::Direct;
    }
    let substitutes: Vec<u16> = {
        let owners: BTreeSet<u16> = ring.iter().map(|slot| slot.backend).collect();
        owners.intersection(&ready).copied().collect()
    };
    if substitutes.is_empty() {
        return Passage::Dark;
    }
    let stand_in = ring.iter().enumerate().map(|(index, slot)| Slot {
        backend: match slot.backend {
            0 => 0,
            backend if ready.contains(&backend) => backend,
            _ => substitutes[index % substitutes.len()],
        },
        alternate: if ready.contains(&slot.alternate) { slot.alternate } else { 0 },
    });
    Passage::StandIn(Arc::new(stand_in.collect()))
}

fn same_ring(a: &Arc<Vec<Slot>>, b: &Arc<Vec<Slot>>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

#[cfg(test)]
mod tests;
