//! Where the RPC services hand in what the leader's loop must do, and the leader's last sign of life.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_api::{
    Caller, HeartbeatRequest, NodeProgress, SessionMessage, SessionRequest, TaskStatusUpdate,
    Write, WriteResult,
};
use shoal_control::Refusal;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Commands that may wait for the loop; beyond it callers are told to come back later.
const QUEUE: usize = 4096;

/// Whoever waits for a write.
pub type Reply = oneshot::Sender<Result<WriteResult, Refusal>>;
/// Where an agent's messages go.
pub type Messages = mpsc::Sender<Result<SessionMessage, Status>>;

/// What the loop is asked to do.
pub enum Command {
    /// A user's or node's write.
    Write {
        /// Who asks.
        caller: Caller,
        /// What for.
        write: Box<Write>,
        /// Answered when the write has committed or was refused.
        reply: Reply,
    },
    /// An agent opens a session.
    Open {
        /// The session's id, made by the RPC.
        session_id: String,
        /// What the agent says of its node, which is that of its certificate.
        request: SessionRequest,
        /// Where its messages go, and in the end why there are no more.
        messages: Messages,
    },
    /// An agent's stream broke.
    Close {
        /// Which.
        session_id: String,
    },
    /// A sign of life.
    Heartbeat {
        /// Node id of the caller's certificate.
        caller: String,
        /// Of which session, and what the node holds.
        request: HeartbeatRequest,
        /// Until the next one, in nanoseconds; `None` when the session is not known.
        reply: oneshot::Sender<Option<u64>>,
    },
    /// States that tasks have reached.
    Statuses {
        /// Of which session.
        session_id: String,
        /// Node id of the caller's certificate.
        caller: String,
        /// The tasks.
        updates: Vec<TaskStatusUpdate>,
        /// Answered when the states have committed.
        reply: Reply,
    },
    /// Raft has let a member go that the store wants no more.
    MemberRemoved {
        /// Its Raft id.
        raft_id: u64,
    },
    /// Where every node's kernel stands.
    Progress {
        /// The answer.
        reply: oneshot::Sender<Vec<NodeProgress>>,
    },
}

/// Commands for the loop, while it runs.
#[derive(Clone, Default)]
pub struct Desk(Arc<Mutex<Option<mpsc::Sender<Command>>>>);

/// This manager does not lead, or cannot keep up.
#[derive(Debug)]
pub struct NotServing;

impl Desk {
    /// Hands a command to the loop.
    ///
    /// # Errors
    /// [`NotServing`]: there is no loop, or its queue is full.
    pub fn send(&self, command: Command) -> Result<(), NotServing> {
        let queue = self.0.lock().clone().ok_or(NotServing)?;
        queue.try_send(command).map_err(|_full_or_closed| NotServing)
    }

    /// Whether the loop runs here.
    pub fn is_open(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|queue| !queue.is_closed())
    }

    /// The loop starts: where it gets its commands from.
    pub(super) fn open(&self) -> mpsc::Receiver<Command> {
        let (queue, commands) = mpsc::channel(QUEUE);
        *self.0.lock() = Some(queue);
        commands
    }

    /// The loop has ended.
    pub(super) fn close(&self) {
        *self.0.lock() = None;
    }
}

/// When this manager last heard a leader, and which.
#[derive(Clone, Default)]
pub struct LastHeard(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    last: Option<(u64, Instant)>,
    /// `last` was made use of.
    taken: bool,
}

impl LastHeard {
    /// The leader with this Raft id was heard now.
    pub fn note(&self, raft_id: u64) {
        *self.0.lock() = Heard { last: Some((raft_id, Instant::now())), taken: false };
    }

    /// Whether a leader was heard within that time.
    pub fn within(&self, time: Duration) -> bool {
        self.0.lock().last.is_some_and(|(_, heard)| heard.elapsed() < time)
    }

    /// Whether a leader with another Raft id was heard within that time.
    pub fn another_within(&self, raft_id: u64, time: Duration) -> bool {
        self.0.lock().last.is_some_and(|(id, heard)| id != raft_id && heard.elapsed() < time)
    }

    /// Which leader was heard last, and when; once only.
    pub(super) fn take(&self) -> Option<(u64, Instant)> {
        let mut heard = self.0.lock();
        let taken = std::mem::replace(&mut heard.taken, true);
        heard.last.filter(|_| !taken)
    }
}
