//! Tasks that are none: for tests with more of them than one machine could run.
//!
//! A task "runs" until it is told to stop or [`Simulated::end`] ends it. Nothing survives the
//! executor, so a restarted agent finds its tasks lost unless it is given the same one again.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use shoal_api::Task;
use tokio::sync::watch;

use super::{Controller, Executor, ExecutorError, Exit, Standing};

type Tasks = Arc<Mutex<HashMap<String, Arc<watch::Sender<Standing>>>>>;

/// An executor that only keeps count; clones share their tasks.
#[derive(Clone, Debug, Default)]
pub struct Simulated {
    tasks: Tasks,
}

impl Simulated {
    /// Ends a task as if it had exited with `code`. `false` when no such task runs.
    #[must_use]
    pub fn end(&self, task_id: &str, code: i32) -> bool {
        let task = self.tasks.lock().get(task_id).cloned();
        task.is_some_and(|task| end(&task, code))
    }

    /// How many tasks run.
    #[must_use]
    pub fn running(&self) -> usize {
        let tasks = self.tasks.lock();
        tasks.values().filter(|task| matches!(*task.borrow(), Standing::Running { .. })).count()
    }
}

impl Executor for Simulated {
    fn controller(&self, task: &Task) -> Box<dyn Controller> {
        let mut tasks = self.tasks.lock();
        let standing = tasks
            .entry(task.id.clone())
            .or_insert_with(|| Arc::new(watch::Sender::new(Standing::Absent)));
        Box::new(SimulatedController {
            id: task.id.clone(),
            tasks: Arc::clone(&self.tasks),
            standing: Arc::clone(standing),
        })
    }
}

struct SimulatedController {
    id: String,
    tasks: Tasks,
    standing: Arc<watch::Sender<Standing>>,
}

#[async_trait]
impl Controller for SimulatedController {
    async fn inspect(&mut self) -> Result<Standing, ExecutorError> {
        Ok(self.standing.borrow().clone())
    }

    async fn prepare(&mut self) -> Result<(), ExecutorError> {
        self.standing.send_replace(Standing::Created { pid: std::process::id() });
        Ok(())
    }

    async fn netns(&mut self) -> Result<OwnedFd, ExecutorError> {
        // The agent's own: what is attached to it is a matter of the lower half that goes with
        // this executor.
        let file = File::open("/proc/self/ns/net");
        file.map(Into::into).map_err(|error| ExecutorError(error.to_string()))
    }

    async fn start(&mut self) -> Result<u32, ExecutorError> {
        let pid = std::process::id();
        self.standing.send_replace(Standing::Running { pid });
        Ok(pid)
    }

    async fn wait(&mut self) -> Result<Exit, ExecutorError> {
        let mut standing = self.standing.subscribe();
        let ended = standing.wait_for(|standing| matches!(standing, Standing::Ended(_))).await;
        match ended.as_deref() {
            Ok(Standing::Ended(exit)) => Ok(exit.clone()),
            _ => Err(ExecutorError("the task is gone".into())),
        }
    }

    async fn shutdown(&mut self) -> Result<(), ExecutorError> {
        end(&self.standing, 0);
        Ok(())
    }

    async fn terminate(&mut self) -> Result<(), ExecutorError> {
        end(&self.standing, 137);
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), ExecutorError> {
        end(&self.standing, 137);
        self.tasks.lock().remove(&self.id);
        Ok(())
    }
}

/// Ends a task that has not ended.
fn end(task: &watch::Sender<Standing>, code: i32) -> bool {
    task.send_if_modified(|standing| {
        let lives = matches!(standing, Standing::Created { .. } | Standing::Running { .. });
        if lives {
            *standing = Standing::Ended(Exit { code: Some(code), error: None });
        }
        lives
    })
}
