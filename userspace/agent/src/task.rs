//! One task, from its assignment to its removal.
//!
//! `ACCEPTED`, `PREPARING`, `READY`, then at the managers' word `STARTING`, `RUNNING`, and an end.
//! States only grow. Each is written down before it is reported, and what really stands is asked
//! of the executor first, so a restarted daemon goes on where the last one was. The network is
//! there before the command runs and goes after it has ended.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_api::{Task, TaskState, TaskStatus};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::backoff::Backoff;
use crate::disk::TaskFiles;
use crate::executor::{Controller, Exit, Standing};
use crate::kernel::{Kernel, KernelError, task_link};
use crate::listening;
use crate::reporter::Reporter;

/// Tries to attach a new task's network before it is given up.
const ATTACH_TRIES: u32 = 4;
/// First and longest delay between tries of what must work in the end.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How far the managers want a task to go. It only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Goal {
    /// Everything up to the start.
    Ready,
    /// Run.
    Run,
    /// Stop, and keep what tells about it.
    Stop,
    /// Stop, and leave nothing.
    Remove,
}

impl Goal {
    /// The goal of a task that is assigned.
    pub(crate) fn of(task: &Task) -> Self {
        match task.desired_state() {
            state if state < TaskState::Running => Self::Ready,
            TaskState::Running | TaskState::Complete => Self::Run,
            _ => Self::Stop,
        }
    }
}

/// Where a task's statuses go.
#[derive(Clone, Debug)]
pub(crate) struct Sinks {
    pub(crate) files: TaskFiles,
    pub(crate) reporter: Reporter,
}

/// The loop of one task.
pub(crate) struct TaskLoop {
    pub(crate) task: Task,
    pub(crate) status: TaskStatus,
    pub(crate) goal: watch::Receiver<Goal>,
    pub(crate) controller: Box<dyn Controller>,
    pub(crate) kernel: Kernel,
    pub(crate) sinks: Sinks,
}

/// How a task ends.
struct End {
    state: TaskState,
    message: Option<&'static str>,
    err: String,
    exit_code: Option<i32>,
}

impl TaskLoop {
    /// Runs until the task is removed.
    pub(crate) async fn run(mut self) {
        if !self.status.state().is_terminal() {
            let end = self.live().await;
            self.end(end);
        }
        self.clean().await;
        self.reached(Goal::Remove).await;
        if let Err(error) = self.sinks.files.remove(&self.task.id) {
            tracing::warn!(task.id = %self.task.id, %error, "a removed task's files are left");
        }
        self.sinks.reporter.forget(&self.task.id);
        tracing::debug!(task.id = %self.task.id, "task removed");
    }

    async fn live(&mut self) -> End {
        self.advance(TaskState::Accepted, "accepted", 0);
        match self.standing().await {
            Standing::Ended(exit) => return End::exited(exit),
            Standing::Running { pid } => {
                self.advance(TaskState::Running, "started", pid);
                return self.running(true).await;
            }
            Standing::Absent if self.status.state() >= TaskState::Starting => {
                return End::failed("the task is gone: the host or its shim stopped".into());
            }
            Standing::Absent | Standing::Created { .. } => {}
        }
        if *self.goal.borrow() >= Goal::Stop {
            return self.stop_unstarted().await;
        }
        self.advance(TaskState::Preparing, "preparing", 0);
        if let Err(error) = self.controller.prepare().await {
            return End::rejected(error.to_string());
        }
        if let Err(error) = self.attach_new().await {
            return End::rejected(format!("attaching the network failed: {error}"));
        }
        self.advance(TaskState::Ready, "prepared", 0);
        self.reached(Goal::Run).await;
        if *self.goal.borrow() >= Goal::Stop {
            return self.stop_unstarted().await;
        }
        self.advance(TaskState::Starting, "starting", 0);
        match self.controller.start().await {
            Ok(pid) => {
                let mut goal = self.goal.clone();
                tokio::select! {
                    () = listening::wait(pid, &self.task.ports) => {}
                    () = reached(&mut goal, Goal::Stop) => {}
                    exit = wait(&mut *self.controller, &self.task.id) => return End::exited(exit),
                }
                self.advance(TaskState::Running, "started", pid);
            }
            Err(error) => return End::failed(error.to_string()),
        }
        self.running(false).await
    }

    /// From the command's start to its end. An adopted task's network is looked after meanwhile:
    /// whatever is wrong with it, the task runs on.
    async fn running(&mut self, adopted: bool) -> End {
        let netns = if adopted { self.controller.netns().await.ok() } else { None };
        let link = task_link(&self.task).ok().flatten().zip(netns);
        let kernel = self.kernel.clone();
        let id = self.task.id.clone();
        let attached = async move {
            if let Some((link, netns)) = link {
                let mut backoff = Backoff::new(RETRY.0, RETRY.1);
                while let Ok(netns) = netns.try_clone() {
                    match kernel.attach(link.clone(), netns).await {
                        Ok(()) | Err(KernelError::Stopped) => break,
                        Err(error) => {
                            tracing::warn!(task.id = %id, %error, "network not attached again");
                            sleep(backoff.next_delay()).await;
                        }
                    }
                }
            }
            std::future::pending::<()>().await;
        };
        let mut goal = self.goal.clone();
        let exit = tokio::select! {
            exit = wait(&mut *self.controller, &self.task.id) => exit,
            () = reached(&mut goal, Goal::Stop) => return self.stop().await,
            () = attached => unreachable!("it never ends"),
        };
        End::exited(exit)
    }

    /// Asks the task to stop, and makes it when it has not within its grace period.
    async fn stop(&mut self) -> End {
        let id = &self.task.id;
        if let Err(error) = self.controller.shutdown().await {
            tracing::warn!(task.id = %id, %error, "cannot ask the task to stop");
        }
        let grace = self.task.spec.clone().unwrap_or_default().stop_grace_period();
        let exit = match timeout(grace, wait(&mut *self.controller, id)).await {
            Ok(exit) => exit,
            Err(_) => {
                if let Err(error) = self.controller.terminate().await {
                    tracing::warn!(task.id = %id, %error, "cannot stop the task");
                }
                wait(&mut *self.controller, id).await
            }
        };
        End::shutdown(exit.code)
    }

    /// Stops a task whose command never ran.
    async fn stop_unstarted(&mut self) -> End {
        if let Err(error) = self.controller.terminate().await {
            tracing::warn!(task.id = %self.task.id, %error, "cannot stop the task");
        }
        End::shutdown(None)
    }

    async fn standing(&mut self) -> Standing {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.controller.inspect().await {
                Ok(standing) => return standing,
                Err(error) => {
                    tracing::warn!(task.id = %self.task.id, %error, "cannot look at the task");
                    sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Gives the prepared task its network.
    async fn attach_new(&mut self) -> Result<(), String> {
        let Some(link) = task_link(&self.task).map_err(|error| error.to_string())? else {
            return Ok(());
        };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut tries = 1;
        loop {
            let netns = self.controller.netns().await.map_err(|error| error.to_string())?;
            match self.kernel.attach(link.clone(), netns).await {
                Ok(()) => return Ok(()),
                Err(error) if tries == ATTACH_TRIES => return Err(error.to_string()),
                Err(_) => tries += 1,
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Takes away what an ended task left in the kernel; does not give up.
    async fn clean(&mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let removed = self.controller.remove().await.map_err(|error| error.to_string());
            let detached = match task_link(&self.task) {
                Ok(Some(_)) => self.kernel.detach(self.task.id.clone()).await,
                // It was never attached.
                Ok(None) | Err(_) => Ok(()),
            };
            // The one is tried also when the other failed.
            match (removed, detached) {
                (Ok(()), Ok(())) => return,
                (removed, detached) => tracing::warn!(
                    task.id = %self.task.id, ?removed, ?detached,
                    "the task is not cleaned up; it is tried again"
                ),
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn reached(&mut self, goal: Goal) {
        reached(&mut self.goal, goal).await;
    }

    /// Takes the next state, if it is one.
    fn advance(&mut self, state: TaskState, message: &str, pid: u32) {
        if state <= self.status.state() {
            return;
        }
        self.observe(TaskStatus {
            state: state.into(),
            timestamp_ns: now_ns(),
            message: message.into(),
            pid,
            ..TaskStatus::default()
        });
    }

    fn end(&mut self, end: End) {
        tracing::info!(
            task.id = %self.task.id, task.name = %self.task.name(), state = end.state.word(),
            err = %end.err, exit_code = end.exit_code, "task ended"
        );
        self.observe(TaskStatus {
            state: end.state.into(),
            timestamp_ns: now_ns(),
            // What it was at when it failed stays readable, as in Docker.
            message: end.message.map_or_else(|| self.status.message.clone(), str::to_owned),
            err: end.err,
            exit_code: end.exit_code,
            pid: self.status.pid,
        });
    }

    fn observe(&mut self, status: TaskStatus) {
        tracing::debug!(task.id = %self.task.id, state = status.state().word(), "task");
        if let Err(error) = self.sinks.files.put_status(&self.task.id, &status) {
            tracing::warn!(task.id = %self.task.id, %error, "cannot write the task's status");
        }
        self.sinks.reporter.report(&self.task.id, status.clone());
        self.status = status;
    }
}

impl End {
    /// The command ended by itself.
    fn exited(exit: Exit) -> Self {
        match (exit.code, exit.error) {
            (Some(0), None) => Self {
                state: TaskState::Complete,
                message: Some("finished"),
                err: String::new(),
                exit_code: Some(0),
            },
            (code, error) => {
                let err = error.unwrap_or_else(|| {
                    format!("task: non-zero exit ({})", code.unwrap_or_default())
                });
                Self { exit_code: code, ..Self::failed(err) }
            }
        }
    }

    /// The task was stopped as wanted.
    fn shutdown(exit_code: Option<i32>) -> Self {
        Self {
            state: TaskState::Shutdown,
            message: Some("shutdown"),
            err: String::new(),
            exit_code,
        }
    }

    /// It did not run, or not to a good end.
    fn failed(err: String) -> Self {
        Self { state: TaskState::Failed, message: None, err, exit_code: None }
    }

    /// It could not be made ready here.
    fn rejected(err: String) -> Self {
        Self { state: TaskState::Rejected, message: None, err, exit_code: None }
    }
}

/// Waits for the task's end, whatever goes wrong with the waiting.
async fn wait(controller: &mut dyn Controller, task_id: &str) -> Exit {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match controller.wait().await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::warn!(task.id = %task_id, %error, "cannot wait for the task");
                sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Waits until the managers want at least `goal`.
async fn reached(wanted: &mut watch::Receiver<Goal>, goal: Goal) {
    if wanted.wait_for(|wanted| *wanted >= goal).await.is_err() {
        // The agent goes, and its tasks' loops with it; the tasks stay.
        std::future::pending::<()>().await;
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
