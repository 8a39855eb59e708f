//! What a node does with its tasks when it leaves its cluster.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shoal_api::Task;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::disk::TaskFiles;
use crate::executor::native::{Native, Options};
use crate::executor::{Controller, Executor, ExecutorError, Standing};
use crate::worker::KILL;
use crate::{MANAGERS, StartError, TASKS};

/// Removes the tasks of a node whose agent does not run, and what the agent keeps on disk, as
/// [`Agent::remove_all`](crate::Agent::remove_all) does: each task is asked to stop and has its
/// grace period; one that cannot be killed is left. What a data plane holds of them goes with the data plane.
///
/// * `state_dir`, `cgroup_root` - as in [`Config`](crate::Config).
///
/// # Errors
/// When the folder of the tasks cannot be read.
pub async fn remove_tasks(
    state_dir: &Path,
    cgroup_root: Option<PathBuf>,
) -> Result<(), StartError> {
    let tasks_dir = state_dir.join(TASKS);
    let error = |source| StartError { path: tasks_dir.clone(), source };
    if tasks_dir.is_dir() {
        let native = Native::new(Options {
            tasks_dir: tasks_dir.clone(),
            state_dir: state_dir.to_owned(),
            shim_exe: PathBuf::new(),
            cgroup_root,
            node_id: String::new(),
            node_name: String::new(),
        });
        let mut stopping = JoinSet::new();
        for task in tasks(&tasks_dir).map_err(error)? {
            let controller = native.controller(&task);
            stopping.spawn(async move {
                let grace = task.spec.clone().unwrap_or_default().stop_grace_period();
                match timeout(grace + KILL, remove(controller, &task)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(task.id = %task.id, %error, "the task is not cleaned up");
                    }
                    Err(_late) => {
                        tracing::warn!(task.id = %task.id, "the task does not end and stays");
                    }
                }
            });
        }
        while stopping.join_next().await.is_some() {}
    }
    remove_files(state_dir);
    Ok(())
}

/// Removes what the agent keeps on disk.
pub(crate) fn remove_files(state_dir: &Path) {
    let tasks = fs::remove_dir_all(state_dir.join(TASKS));
    let managers = fs::remove_file(state_dir.join(MANAGERS));
    for removed in [tasks, managers] {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %state_dir.display(), %error, "files of the agent are left");
            }
            _ => {}
        }
    }
}

/// All tasks that have a folder: one whose files are damaged has its name at least.
fn tasks(dir: &Path) -> io::Result<Vec<Task>> {
    let known = TaskFiles::open(dir.to_owned())?.load()?;
    let mut tasks: Vec<Task> = known.into_iter().map(|(task, _)| task).collect();
    for entry in fs::read_dir(dir)? {
        let id = entry?.file_name().into_string().unwrap_or_else(|name: OsString| {
            tracing::warn!(?name, "no task has such a name");
            String::new()
        });
        if crate::worker::usable_id(&id) && tasks.iter().all(|task| task.id != id) {
            tasks.push(Task { id, ..Task::default() });
        }
    }
    Ok(tasks)
}

async fn remove(mut controller: Box<dyn Controller>, task: &Task) -> Result<(), ExecutorError> {
    if let Standing::Running { .. } = controller.inspect().await? {
        controller.shutdown().await?;
        let grace = task.spec.clone().unwrap_or_default().stop_grace_period();
        // Whoever is left after it is killed below.
        let _ = timeout(grace, controller.wait()).await;
    }
    controller.remove().await
}
