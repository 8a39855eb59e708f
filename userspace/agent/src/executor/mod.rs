//! A way to run tasks, and one task's handle.
//!
//! The shape is `SwarmKit`'s (agent/exec/controller.go): a task is prepared, started, waited for,
//! shut down or terminated, and removed. The task's loop in `task.rs` decides when;
//! a [`Controller`] does it and remembers nothing that a restarted daemon could not find again.

pub mod native;
pub mod simulated;

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use shoal_api::Task;

/// Why a controller could not do what was asked: a sentence for the task's error column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExecutorError(pub String);

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 and the signal's number after a signal. `None` when nobody saw it.
    pub code: Option<i32>,
    /// What is to be said beside the code.
    pub error: Option<String>,
}

/// Where a task stands, as its executor finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is there.
    Absent,
    /// Prepared, and not started.
    Created {
        /// Its first process.
        pid: u32,
    },
    /// It runs.
    Running {
        /// Its first process.
        pid: u32,
    },
    /// It ran, or could not.
    Ended(Exit),
}

/// Makes controllers.
pub trait Executor: Send + Sync + 'static {
    /// The handle of one task, also of one that an earlier daemon started.
    fn controller(&self, task: &Task) -> Box<dyn Controller>;
}

/// One task's handle.
#[async_trait]
pub trait Controller: Send {
    /// Looks where the task stands.
    async fn inspect(&mut self) -> Result<Standing, ExecutorError>;

    /// Makes everything that the task needs but its network. A repeated call finds its work done.
    async fn prepare(&mut self) -> Result<(), ExecutorError>;

    /// The task's network namespace, which exists from [`prepare`](Self::prepare) to the end.
    async fn netns(&mut self) -> Result<OwnedFd, ExecutorError>;

    /// Runs the command; returns its process id once it runs.
    async fn start(&mut self) -> Result<u32, ExecutorError>;

    /// Waits until the task has ended. May be dropped and called again.
    async fn wait(&mut self) -> Result<Exit, ExecutorError>;

    /// Asks the task to stop.
    async fn shutdown(&mut self) -> Result<(), ExecutorError>;

    /// Makes the task stop.
    async fn terminate(&mut self) -> Result<(), ExecutorError>;

    /// Removes what the task left behind; called after its end, and more than once.
    async fn remove(&mut self) -> Result<(), ExecutorError>;
}
