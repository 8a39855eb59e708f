//! Task statuses on their way up, until a manager has acknowledged them.
//!
//! States only grow, so the latest status of a task is all that has to arrive. A new session
//! reports every status again: a new leader may have taken over before the last ones were
//! committed, and to the managers a repeated status is no change.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_api::{TaskStatus, TaskStatusUpdate};
use tokio::sync::Notify;

/// Statuses in one message: the managers store one message's in one batch, each with its task's
/// spec, and a batch must fit in a message of theirs.
const BATCH: usize = 200;
/// Longest error and message that go up: the managers keep and replicate them.
const ERR_BYTES: usize = 1_024;

/// The statuses of all tasks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reporter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    tasks: Mutex<BTreeMap<String, Entry>>,
    news: Notify,
}

#[derive(Debug)]
struct Entry {
    status: TaskStatus,
    acknowledged: bool,
}

impl Reporter {
    /// Takes a task's new status.
    pub(crate) fn report(&self, task_id: &str, mut status: TaskStatus) {
        shorten(&mut status.err);
        shorten(&mut status.message);
        let entry = Entry { status, acknowledged: false };
        self.shared.tasks.lock().insert(task_id.to_owned(), entry);
        self.shared.news.notify_one();
    }

    /// Forgets a removed task.
    pub(crate) fn forget(&self, task_id: &str) {
        self.shared.tasks.lock().remove(task_id);
    }

    /// A new session: everything has to be said again.
    pub(crate) fn start_over(&self) {
        for entry in self.shared.tasks.lock().values_mut() {
            entry.acknowledged = false;
        }
        self.shared.news.notify_one();
    }

    /// What has to be said; waits until there is something.
    pub(crate) async fn batch(&self) -> Vec<TaskStatusUpdate> {
        loop {
            let updates: Vec<_> = self
                .shared
                .tasks
                .lock()
                .iter()
                .filter(|(_, entry)| !entry.acknowledged)
                .take(BATCH)
                .map(|(id, entry)| TaskStatusUpdate {
                    task_id: id.clone(),
                    status: Some(entry.status.clone()),
                })
                .collect();
            if !updates.is_empty() {
                return updates;
            }
            self.shared.news.notified().await;
        }
    }

    /// A manager has these; a status that changed meanwhile still has to be said.
    pub(crate) fn acknowledge(&self, updates: &[TaskStatusUpdate]) {
        let mut tasks = self.shared.tasks.lock();
        for update in updates {
            if let Some(entry) = tasks.get_mut(&update.task_id)
                && Some(&entry.status) == update.status.as_ref()
            {
                entry.acknowledged = true;
            }
        }
    }
}

fn shorten(text: &mut String) {
    if text.len() > ERR_BYTES {
        text.truncate(text.floor_char_boundary(ERR_BYTES - '…'.len_utf8()));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::TaskState;

    use super::*;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state: state.into(), ..TaskStatus::default() }
    }

    #[tokio::test]
    async fn a_status_that_changed_under_way_is_said_again() {
        let reporter = Reporter::default();
        reporter.report("t", status(TaskState::Starting));
        let first = reporter.batch().await;
        reporter.report("t", status(TaskState::Running));
        reporter.acknowledge(&first);
        let second = reporter.batch().await;
        assert_eq!(second[0].status, Some(status(TaskState::Running)));
        reporter.acknowledge(&second);
        reporter.start_over();
        assert_eq!(reporter.batch().await, second);
    }

    #[tokio::test]
    async fn an_error_without_end_is_cut() {
        let reporter = Reporter::default();
        for task in 0..BATCH {
            let status = TaskStatus { err: "ä".repeat(100_000), ..status(TaskState::Failed) };
            reporter.report(&format!("t{task}"), status);
        }
        let batch = reporter.batch().await;
        let err = &batch[0].status.as_ref().unwrap().err;
        assert!(err.ends_with("ä…") && err.len() <= ERR_BYTES, "{}", err.len());
        let request = shoal_api::UpdateTaskStatusRequest { updates: batch, ..Default::default() };
        assert!(prost::Message::encoded_len(&request) < 4 << 20);
    }
}
