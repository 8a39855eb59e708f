//! Where what was asked of a manager waits for the leader's loop, as in the manager.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_api::{Assignments, SessionRequest, TaskStatusUpdate, Write, WriteResult};
use shoal_control::Refusal;
use tokio::sync::{mpsc, oneshot};

/// Whoever waits for a write.
pub(super) type Reply = oneshot::Sender<Result<WriteResult, Refusal>>;

/// What an agent is sent.
#[derive(Clone, Debug)]
pub(super) enum ToAgent {
    /// Tasks and routes.
    Assignments(Assignments),
    /// Whether the node is a manager now.
    IsManager(bool),
}

/// What the loop is asked to do.
pub(super) enum Command {
    Write {
        write: Box<Write>,
        reply: Reply,
    },
    Open {
        session_id: String,
        request: Box<SessionRequest>,
        messages: mpsc::Sender<ToAgent>,
    },
    Close {
        session_id: String,
    },
    Heartbeat {
        session_id: String,
        node_id: String,
        held: u64,
        reply: oneshot::Sender<bool>,
    },
    Statuses {
        session_id: String,
        node_id: String,
        updates: Vec<TaskStatusUpdate>,
        reply: Reply,
    },
    /// By node: what its kernel should hold, and what it holds.
    Progress {
        reply: oneshot::Sender<BTreeMap<String, (u64, u64)>>,
    },
}

/// Commands for the loop, while it runs.
#[derive(Clone, Default)]
pub(super) struct Desk(Arc<Mutex<Option<mpsc::UnboundedSender<Command>>>>);

impl Desk {
    /// Whether the loop took the command.
    pub(super) fn send(&self, command: Command) -> bool {
        let queue = self.0.lock().clone();
        queue.is_some_and(|queue| queue.send(command).is_ok())
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.lock().is_some()
    }

    pub(super) fn open(&self) -> mpsc::UnboundedReceiver<Command> {
        let (queue, commands) = mpsc::unbounded_channel();
        *self.0.lock() = Some(queue);
        commands
    }

    pub(super) fn close(&self) {
        *self.0.lock() = None;
    }
}
