//! Applies one batch of changes: all of them, or none.
//!
//! A batch is judged by its outcome, not by its order: first every changed object is taken out,
//! then the new ones are put in, so a port may pass from one service to another in one batch.

use std::collections::BTreeSet;

use shoal_api::{Batch, Event, EventAction, Kind, Meta, Object, Task, TaskState, change, object};

use super::{Claim, Store};

/// Why a batch does not hold. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Somebody wrote the object since the writer read it. Docker's text for it is
    /// "update out of sequence".
    #[error("{kind:?} {id} is at version {stored}, not {seen}")]
    Version {
        /// Table of the object.
        kind: Kind,
        /// Id of the object.
        id: String,
        /// Version that the writer saw; 0 for a new object.
        seen: u64,
        /// Version that is stored; 0 for none.
        stored: u64,
    },
    /// One batch changes an object twice.
    #[error("{kind:?} {id} is changed twice in one batch")]
    Twice {
        /// Table of the object.
        kind: Kind,
        /// Id of the object.
        id: String,
    },
    /// A name, number, port or address would belong to two objects.
    #[error("{claim} of {id} belongs to {holder}")]
    Taken {
        /// What is shared.
        claim: Claim,
        /// Who wants it.
        id: String,
        /// Who has it.
        holder: String,
    },
    /// A task's state or desired state would go down.
    #[error("task {id} would go from {which} {from} back to {to}")]
    StateBack {
        /// The task.
        id: String,
        /// `state` or `desired state`.
        which: &'static str,
        /// As stored.
        from: &'static str,
        /// As asked for.
        to: &'static str,
    },
    /// A task would move to another node.
    #[error("task {id} would move from node {from} to {to:?}")]
    Moved {
        /// The task.
        id: String,
        /// As stored.
        from: String,
        /// As asked for.
        to: String,
    },
    /// The change has no object, no id, or is of a newer release.
    #[error("a change names no object that this release knows")]
    Unknown,
}

impl Store {
    /// Applies the batch at a Raft index and tells what happened. Objects get the index as their
    /// version and the batch's time as `created_at` or `updated_at`.
    ///
    /// # Errors
    /// The first [`Conflict`] found; the store is unchanged then.
    pub fn apply(&mut self, index: u64, batch: &Batch) -> Result<Vec<Event>, Conflict> {
        let mut next = self.clone();
        let mut seen = BTreeSet::new();
        let mut changes = Vec::with_capacity(batch.changes.len());
        for change in &batch.changes {
            let (kind, id, version) = target(change.change.as_ref())?;
            let old = next.take(kind, id);
            if !seen.insert((kind, id.to_owned())) {
                return Err(Conflict::Twice { kind, id: id.to_owned() });
            }
            let stored = old.as_ref().map_or(0, Object::version);
            let removes_nothing = old.is_none() && version == 0 && is_removal(change);
            if stored != version || removes_nothing {
                return Err(Conflict::Version { kind, id: id.to_owned(), seen: version, stored });
            }
            changes.push((old, put_of(change)));
        }
        let mut events = Vec::with_capacity(changes.len());
        for (old, put) in changes {
            let Some(new) = put else {
                events.push(Event { action: EventAction::Remove.into(), object: old });
                continue;
            };
            let new = stamped(new, old.as_ref(), index, batch.now_ns);
            check_growth(old.as_ref(), &new)?;
            if let Some((claim, holder)) = next.insert(new.clone()) {
                return Err(Conflict::Taken { claim, id: new.id().to_owned(), holder });
            }
            let action = if old.is_some() { EventAction::Update } else { EventAction::Create };
            events.push(Event { action: action.into(), object: Some(new) });
        }
        next.index = index;
        *self = next;
        Ok(events)
    }
}

/// Table, id and version that a change names.
fn target(change: Option<&change::Change>) -> Result<(Kind, &str, u64), Conflict> {
    let (kind, id, version) = match change.ok_or(Conflict::Unknown)? {
        change::Change::Put(object) => {
            (object.kind().ok_or(Conflict::Unknown)?, object.id(), object.version())
        }
        change::Change::Remove(removal) => {
            let kind = Kind::try_from(removal.kind).map_err(|_| Conflict::Unknown)?;
            (kind, removal.id.as_str(), removal.version)
        }
    };
    if id.is_empty() { Err(Conflict::Unknown) } else { Ok((kind, id, version)) }
}

fn is_removal(change: &shoal_api::Change) -> bool {
    matches!(change.change, Some(change::Change::Remove(_)))
}

fn put_of(change: &shoal_api::Change) -> Option<Object> {
    match &change.change {
        Some(change::Change::Put(object)) => Some(object.clone()),
        _ => None,
    }
}

fn stamped(mut new: Object, old: Option<&Object>, version: u64, now_ns: u64) -> Object {
    let created = old.and_then(Object::meta).map_or(now_ns, |meta| meta.created_at_ns);
    new.set_meta(Meta { version, created_at_ns: created, updated_at_ns: now_ns });
    new
}

/// Invariant: a task's states only grow, and it stays on its node.
fn check_growth(old: Option<&Object>, new: &Object) -> Result<(), Conflict> {
    let (Some(old), Some(new)) = (old.and_then(as_task), as_task(new)) else { return Ok(()) };
    let back = |which, from: TaskState, to: TaskState| Conflict::StateBack {
        id: new.id.clone(),
        which,
        from: from.word(),
        to: to.word(),
    };
    if new.state() < old.state() {
        return Err(back("state", old.state(), new.state()));
    }
    if new.desired_state() < old.desired_state() {
        return Err(back("desired state", old.desired_state(), new.desired_state()));
    }
    if !old.node_id.is_empty() && old.node_id != new.node_id {
        let (from, to) = (old.node_id.clone(), new.node_id.clone());
        return Err(Conflict::Moved { id: new.id.clone(), from, to });
    }
    Ok(())
}

fn as_task(object: &Object) -> Option<&Task> {
    match &object.object {
        Some(object::Object::Task(task)) => Some(task),
        _ => None,
    }
}
