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
    let unready = Unready::of(held, want);
    let passages: BTreeMap<u16, Passage> =
        want.rings.iter().map(|(service, ring)| (*service, unready.passage(ring))).collect();
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
        if !held.backends.contains_key(number) && !unready.contains(*number) {
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
    for (number, address) in &want.nodes {
        if held.nodes.get(number).is_some_and(|held| held != address) {
            steps.push(Step::PutNode(*number, *address));
        }
    }
    for (number, backend) in &want.backends {
        if unready.contains(*number) {
            steps.push(Step::PutBackend(*number, *backend));
        }
    }
    steps.append(&mut last_rings);
    for (key, frontend) in &want.frontends {
        if held.frontends.get(key) != Some(frontend) || away.contains(key) {
            steps.push(Step::PutFrontend(*key, *frontend));
        }
    }

    // What no packet comes to any more, last: nobody waits for it.
    steps.extend(gone(&held.rings, &want.rings).map(Step::DropRing));
    steps.extend(gone(&held.backends, &want.backends).map(Step::DropBackend));
    steps.extend(gone(&held.nodes, &want.nodes).map(Step::DropNode));
    steps
}

fn gone<'a, V>(
    held: &'a BTreeMap<u16, V>,
    want: &'a BTreeMap<u16, V>,
) -> impl Iterator<Item = u16> + 'a {
    held.keys().filter(|number| !want.contains_key(number)).copied()
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

/// The wanted backends that no ring may name before their numbers have changed their meaning.
struct Unready(BTreeSet<u16>);

impl Unready {
    fn of(held: &Plan, want: &Plan) -> Self {
        let unready = |(number, next): &(&u16, &Backend)| match held.backends.get(number) {
            Some(now) => now != *next,
            // A number without a meaning gets one at once, unless its node's number still means
            // another address.
            None => {
                let now = held.nodes.get(&next.node);
                now.is_some() && now != want.nodes.get(&next.node)
            }
        };
        Self(want.backends.iter().filter(unready).map(|(number, _)| *number).collect())
    }

    fn contains(&self, number: u16) -> bool {
        self.0.contains(&number)
    }

    fn passage(&self, ring: &[Slot]) -> Passage {
        // Rings are long and numbers are seldom used again: most diffs look at no slot.
        if self.0.is_empty() {
            return Passage::Direct;
        }
        let names = |slot: &Slot| self.contains(slot.backend) || self.contains(slot.alternate);
        if !ring.iter().any(names) {
            return Passage::Direct;
        }
        let owners: BTreeSet<u16> = ring.iter().map(|slot| slot.backend).collect();
        let substitutes: Vec<u16> = owners.difference(&self.0).copied().collect();
        if substitutes.is_empty() {
            return Passage::Dark;
        }
        let stand_in = ring.iter().enumerate().map(|(index, slot)| Slot {
            backend: if self.contains(slot.backend) {
                substitutes[index % substitutes.len()]
            } else {
                slot.backend
            },
            alternate: if self.contains(slot.alternate) { 0 } else { slot.alternate },
        });
        Passage::StandIn(Arc::new(stand_in.collect()))
    }
}

fn same_ring(a: &Arc<Vec<Slot>>, b: &Arc<Vec<Slot>>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

#[cfg(test)]
mod tests;
