//! The tasks of this node: one loop each, started by assignments or found on disk.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::assignment_change::Item;
use shoal_api::{Assignments, AssignmentsType, Task, TaskState, TaskStatus};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::executor::Executor;
use crate::kernel::Kernel;
use crate::task::{Goal, Sinks, TaskLoop};

/// Longest id that becomes a folder's and a cgroup's name.
const ID_LENGTH: usize = 64;
/// How long a task may take to be gone once it is killed: a node must be able to leave although one
/// cannot be.
pub(crate) const KILL: Duration = Duration::from_secs(20);

/// All tasks of the node. Dropping it ends their loops and leaves the tasks running.
pub(crate) struct Worker {
    executor: Arc<dyn Executor>,
    kernel: Kernel,
    sinks: Sinks,
    goals: HashMap<String, watch::Sender<Goal>>,
    loops: JoinSet<()>,
}

impl Worker {
    pub(crate) fn new(executor: Arc<dyn Executor>, kernel: Kernel, sinks: Sinks) -> Self {
        Self { executor, kernel, sinks, goals: HashMap::new(), loops: JoinSet::new() }
    }

    /// Takes over what an earlier daemon left.
    pub(crate) fn adopt(&mut self) -> io::Result<()> {
        for (task, status) in self.sinks.files.load()? {
            tracing::info!(task.id = %task.id, state = status.state().word(), "task adopted");
            // What happened last may not have been heard.
            if status.state() >= TaskState::Accepted {
                self.sinks.reporter.report(&task.id, status.clone());
            }
            self.start(task, status);
        }
        Ok(())
    }

    /// Makes the tasks those that are assigned.
    pub(crate) fn assign(&mut self, assignments: &Assignments) {
        while self.loops.try_join_next().is_some() {}
        self.goals.retain(|_, goal| !goal.is_closed());
        let mut named = HashSet::new();
        for change in &assignments.changes {
            let Some(Item::Task(task)) = &change.item else { continue };
            if change.remove {
                self.remove(&task.id);
            } else {
                named.insert(task.id.as_str());
                self.put(task);
            }
        }
        if assignments.r#type() == AssignmentsType::Complete {
            let gone: Vec<String> =
                self.goals.keys().filter(|id| !named.contains(id.as_str())).cloned().collect();
            for id in gone {
                self.remove(&id);
            }
        }
    }

    /// Stops all tasks, each in its grace period, and removes all that is of them. What cannot be
    /// killed, as a process that waits for a dead disk, stays.
    pub(crate) async fn remove_all(&mut self) {
        self.remove_within(KILL).await;
    }

    async fn remove_within(&mut self, kill: Duration) {
        let tasks = self.sinks.files.load().unwrap_or_default();
        let grace =
            tasks.iter().filter_map(|(task, _)| Some(task.spec.as_ref()?.stop_grace_period()));
        let limit = grace.max().unwrap_or_default() + kill;
        for goal in self.goals.values() {
            goal.send_replace(Goal::Remove);
        }
        let all = async { while self.loops.join_next().await.is_some() {} };
        if timeout(limit, all).await.is_err() {
            let tasks = self.loops.len();
            tracing::warn!(tasks, "tasks do not end; what is left of them stays");
            self.loops.shutdown().await;
        }
        self.goals.clear();
    }

    fn put(&mut self, task: &Task) {
        if let Some(goal) = self.goals.get(&task.id) {
            let wanted = Goal::of(task);
            let grows = |goal: &mut Goal| {
                let grown = wanted > *goal;
                *goal = wanted.max(*goal);
                grown
            };
            if goal.send_if_modified(grows) {
                self.keep(task);
            }
            return;
        }
        let status = task.status.clone().unwrap_or_default();
        // Ended, and nothing of it is here: history that the managers keep.
        if status.state().is_terminal() {
            return;
        }
        if !usable_id(&task.id) {
            tracing::error!(task.id = %task.id, "a task's id cannot be used; it is not run");
            return;
        }
        self.keep(task);
        // A task that the managers saw start, and of which nothing is here, is not started again:
        // its loop finds nothing and says so.
        self.start(task.clone(), status);
    }

    fn remove(&mut self, task_id: &str) {
        if let Some(goal) = self.goals.get(task_id) {
            goal.send_replace(Goal::Remove);
        }
    }

    /// Writes the assignment down, so that a restarted daemon knows it without a manager.
    fn keep(&self, task: &Task) {
        if let Err(error) = self.sinks.files.put_task(task) {
            tracing::warn!(task.id = %task.id, %error, "cannot write the task down");
        }
    }

    fn start(&mut self, task: Task, status: TaskStatus) {
        let (goal, wanted) = watch::channel(Goal::of(&task));
        self.goals.insert(task.id.clone(), goal);
        let controller = self.executor.controller(&task);
        let task_loop = TaskLoop {
            task,
            status,
            goal: wanted,
            controller,
            kernel: self.kernel.clone(),
            sinks: self.sinks.clone(),
        };
        self.loops.spawn(task_loop.run());
    }
}

/// Ids are names of folders: letters and digits only.
pub(crate) fn usable_id(id: &str) -> bool {
    (1..=ID_LENGTH).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{BorrowedFd, OwnedFd};

    use async_trait::async_trait;
    use shoal_routing::{Lower, Plan, TaskLink, TaskPort};

    use super::*;
    use crate::disk::TaskFiles;
    use crate::executor::{Controller, ExecutorError, Exit, Standing};
    use crate::kernel::Counters;
    use crate::reporter::Reporter;

    /// Its tasks run and cannot be killed.
    struct Undying;

    impl Executor for Undying {
        fn controller(&self, _: &Task) -> Box<dyn Controller> {
            Box::new(Self)
        }
    }

    #[async_trait]
    impl Controller for Undying {
        async fn inspect(&mut self) -> Result<Standing, ExecutorError> {
            Ok(Standing::Running { pid: 1 })
        }
        async fn prepare(&mut self) -> Result<(), ExecutorError> {
            Ok(())
        }
        async fn netns(&mut self) -> Result<OwnedFd, ExecutorError> {
            Err(ExecutorError("none".into()))
        }
        async fn start(&mut self) -> Result<u32, ExecutorError> {
            Ok(1)
        }
        async fn wait(&mut self) -> Result<Exit, ExecutorError> {
            std::future::pending().await
        }
        async fn shutdown(&mut self) -> Result<(), ExecutorError> {
            Ok(())
        }
        async fn terminate(&mut self) -> Result<(), ExecutorError> {
            Ok(())
        }
        async fn remove(&mut self) -> Result<(), ExecutorError> {
            Ok(())
        }
    }

    struct NoKernel;

    impl Lower for NoKernel {
        type Error = std::convert::Infallible;

        async fn apply(&mut self, _: &Plan) -> Result<usize, Self::Error> {
            Ok(0)
        }
        async fn resync(&mut self) -> Result<usize, Self::Error> {
            Ok(0)
        }
        async fn attach(
            &mut self,
            _: &TaskLink,
            _: BorrowedFd<'_>,
        ) -> Result<TaskPort, Self::Error> {
            Ok(TaskPort { ifindex: 1, host_mac: [0; 6] })
        }
        async fn detach(&mut self, _: &str) -> Result<(), Self::Error> {
            Ok(())
        }
        fn counters(&self) -> Result<Counters, Self::Error> {
            Ok(Counters::new())
        }
        fn choices(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn a_task_that_cannot_be_killed_does_not_keep_its_node_from_leaving() {
        let dir = tempfile::tempdir().unwrap();
        let files = TaskFiles::open(dir.path().to_owned()).unwrap();
        let sinks = Sinks { files, reporter: Reporter::default() };
        let kernel = Kernel::start(NoKernel, "n".into());
        let mut worker = Worker::new(Arc::new(Undying), kernel, sinks);
        let mut task = Task { id: "t".into(), ..Task::default() };
        task.spec = Some(shoal_api::TaskSpec {
            container: Some(shoal_api::ContainerSpec {
                stop_grace_period_ns: Some(300_000_000),
                ..shoal_api::ContainerSpec::default()
            }),
            ..shoal_api::TaskSpec::default()
        });
        worker.put(&task);
        let begun = std::time::Instant::now();
        let removing = worker.remove_within(Duration::from_millis(100));
        timeout(Duration::from_secs(20), removing).await.expect("a node can leave");
        assert!(begun.elapsed() >= Duration::from_millis(400), "the task has its grace period");
    }

    #[test]
    fn an_id_that_could_leave_its_folder_is_refused() {
        assert!(usable_id("0w2fs8k4hrvx3n9p1q5t7y6zb"));
        for id in ["", ".", "..", "a/b", "a b", &"a".repeat(65)] {
            assert!(!usable_id(id), "{id:?}");
        }
    }
}
