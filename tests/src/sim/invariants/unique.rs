//! No address, MAC, number, name or port belongs to two, and a slot has one task that is meant to
//! run.
//!
//! Source: design, section on the allocator; `SwarmKit`, design/orchestrators.md, "slot".

use std::collections::BTreeSet;
use std::fmt::Debug;

use shoal_api::TaskState;
use shoal_control::Store;

use super::{Event, Invariant};

/// Nothing to remember.
#[derive(Default)]
pub(super) struct Unique;

impl Invariant for Unique {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Chosen { store, events, .. } if !events.is_empty() => check(store),
            _ => Ok(()),
        }
    }
}

fn check(store: &Store) -> Result<(), String> {
    let attachments: Vec<_> = store.tasks().flat_map(|task| task.attachments.iter()).collect();
    distinct("address", attachments.iter().map(|a| (&a.network_id, &a.address)))?;
    distinct("MAC", attachments.iter().map(|a| &a.mac))?;
    distinct("backend number", attachments.iter().map(|a| a.backend))?;
    distinct("node number", store.nodes().map(|node| node.number))?;
    distinct("raft id", store.nodes().filter_map(|n| n.manager.as_ref()).map(|m| m.raft_id))?;
    distinct("service number", store.services().map(|service| service.number))?;
    let named = store.services().filter(|service| !service.pending_delete);
    distinct("name", named.map(|service| service.name()))?;
    let ports = store.services().flat_map(|service| service.ports.iter());
    distinct("port", ports.map(|port| (port.protocol, port.published_port)))?;
    let wanted = store.tasks().filter(|task| task.desired_state() <= TaskState::Running);
    distinct("slot", wanted.map(|task| (&task.service_id, task.slot)))
}

fn distinct<T: Ord + Debug>(what: &str, items: impl Iterator<Item = T>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for item in items {
        if seen.contains(&item) {
            return Err(format!("{what} {item:?} belongs to two"));
        }
        seen.insert(item);
    }
    Ok(())
}
