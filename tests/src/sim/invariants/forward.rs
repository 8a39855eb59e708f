//! Nothing goes backwards: tasks' states only grow, a task never moves, time in the store only
//! passes, and a reader never sees an older store than before, whichever managers it asks.
//!
//! Source: ARCHITECTURE.md, invariant 4; `SwarmKit`, api/types.proto, "TaskState" (states are a
//! Lamport clock); Terry et al., "Session guarantees", PDIS 1994, "Monotonic Reads".

use std::collections::BTreeMap;

use openraft::EntryPayload;
use shoal_api::{Task, TaskState, object};

use super::{Event, Invariant};

/// What each task and reader had come to.
#[derive(Default)]
pub(super) struct Forward {
    tasks: BTreeMap<String, (TaskState, TaskState, String)>,
    readers: BTreeMap<u64, u64>,
    now_ns: u64,
}

impl Forward {
    fn task(&mut self, task: &Task) -> Result<(), String> {
        let is = (task.state(), task.desired_state(), task.node_id.clone());
        if let Some(was) = self.tasks.get(&task.id)
            && (is.0 < was.0 || is.1 < was.1 || (!was.2.is_empty() && was.2 != is.2))
        {
            return Err(format!("task {} went from {was:?} to {is:?}", task.id));
        }
        self.tasks.insert(task.id.clone(), is);
        Ok(())
    }
}

impl Invariant for Forward {
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Chosen { entry, events, .. } => {
                if let EntryPayload::Normal(proposal) = &entry.payload {
                    let (was, is) = (self.now_ns, proposal.batch.now_ns);
                    self.now_ns = is;
                    if is < was {
                        let ms = (was - is) / 1_000_000;
                        return Err(format!("time went back {ms} ms at {}", entry.log_id));
                    }
                }
                for event in *events {
                    let object = event.object.as_ref().and_then(|object| object.object.as_ref());
                    let Some(object::Object::Task(task)) = object else { continue };
                    self.task(task)?;
                }
                Ok(())
            }
            Event::Read { reader, index } => {
                let was = self.readers.insert(*reader, *index).unwrap_or(0);
                if *index < was {
                    return Err(format!("reader {reader} saw {was} and then {index}"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
