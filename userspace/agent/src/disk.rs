//! What an agent keeps on disk: each task as assigned, what was observed of it, and the managers.
//!
//! A task's folder holds `task.pb` (the protobuf message, so that no field is lost), `status.json`
//! and what its executor puts there. Files are replaced by a rename. They are not flushed: after a
//! power cut no task runs, and the managers still know what they assigned.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use prost::Message;
use serde::{Deserialize, Serialize};
use shoal_api::{Task, TaskState, TaskStatus};

const TASK: &str = "task.pb";
const STATUS: &str = "status.json";

/// The folder with one folder per task.
#[derive(Clone, Debug)]
pub(crate) struct TaskFiles {
    dir: PathBuf,
}

/// A status in words.
#[derive(Serialize, Deserialize)]
struct StatusFile {
    state: String,
    timestamp_ns: u64,
    message: String,
    err: String,
    exit_code: Option<i32>,
    pid: u32,
}

impl TaskFiles {
    /// Makes the folder, readable by root only: a task's environment may hold secrets.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        make_private(&dir)?;
        Ok(Self { dir })
    }

    /// All tasks that an earlier daemon left, with what it had observed.
    pub(crate) fn load(&self) -> io::Result<Vec<(Task, TaskStatus)>> {
        let mut tasks = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let dir = entry?.path();
            match read_task(&dir) {
                Ok(found) => tasks.push(found),
                // Left by a removal that was cut short, or by a disk that lost it: without the
                // task nothing can be done for it, and the managers will say what they know.
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a task's files cannot be read");
                }
            }
        }
        tasks.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        Ok(tasks)
    }

    /// Keeps a task as assigned.
    pub(crate) fn put_task(&self, task: &Task) -> io::Result<()> {
        let dir = self.dir.join(&task.id);
        make_private(&dir)?;
        replace(&dir.join(TASK), &task.encode_to_vec())
    }

    /// Keeps what was observed of a task.
    pub(crate) fn put_status(&self, task_id: &str, status: &TaskStatus) -> io::Result<()> {
        let file = StatusFile {
            state: status.state().as_str_name().to_owned(),
            timestamp_ns: status.timestamp_ns,
            message: status.message.clone(),
            err: status.err.clone(),
            exit_code: status.exit_code,
            pid: status.pid,
        };
        let json = serde_json::to_vec_pretty(&file).expect("plain fields have a JSON form");
        replace(&self.dir.join(task_id).join(STATUS), &json)
    }

    /// Removes all of a task.
    pub(crate) fn remove(&self, task_id: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.dir.join(task_id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

fn read_task(dir: &Path) -> io::Result<(Task, TaskStatus)> {
    let task = Task::decode(fs::read(dir.join(TASK))?.as_slice()).map_err(io::Error::other)?;
    if dir.file_name().is_none_or(|name| name != task.id.as_str()) {
        return Err(io::Error::other(format!("the folder holds task {:?}", task.id)));
    }
    let status = match fs::read(dir.join(STATUS)) {
        Ok(json) => {
            let file: StatusFile = serde_json::from_slice(&json).map_err(io::Error::other)?;
            let state = TaskState::from_str_name(&file.state)
                .ok_or_else(|| io::Error::other(format!("unknown state {:?}", file.state)))?;
            TaskStatus {
                state: state.into(),
                timestamp_ns: file.timestamp_ns,
                message: file.message,
                err: file.err,
                exit_code: file.exit_code,
                pid: file.pid,
            }
        }
        // Assigned, and the daemon went before its first step.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            task.status.clone().unwrap_or_default()
        }
        Err(error) => return Err(error),
    };
    Ok((task, status))
}

/// Makes a folder that only root can enter.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Replaces a file as a whole.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_and_its_status_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let files = TaskFiles::open(dir.path().join("tasks")).unwrap();
        let task = Task { id: "t1".into(), slot: 3, ..Task::default() };
        files.put_task(&task).unwrap();
        assert_eq!(files.load().unwrap(), [(task.clone(), TaskStatus::default())]);
        let status = TaskStatus {
            state: TaskState::Failed.into(),
            timestamp_ns: 7,
            message: "started".into(),
            err: "task: non-zero exit (3)".into(),
            exit_code: Some(3),
            pid: 99,
        };
        files.put_status("t1", &status).unwrap();
        assert_eq!(files.load().unwrap(), [(task, status)]);
        files.remove("t1").unwrap();
        files.remove("t1").unwrap();
        assert_eq!(files.load().unwrap(), []);
    }

    #[test]
    fn a_damaged_folder_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let files = TaskFiles::open(dir.path().to_owned()).unwrap();
        files.put_task(&Task { id: "good".into(), ..Task::default() }).unwrap();
        files.put_task(&Task { id: "bad".into(), ..Task::default() }).unwrap();
        fs::write(dir.path().join("bad/status.json"), "{").unwrap();
        let ids: Vec<_> = files.load().unwrap().into_iter().map(|(task, _)| task.id).collect();
        assert_eq!(ids, ["good"]);
    }
}
