//! One cgroup per task, in a version 2 tree.
//!
//! It makes sure that nothing of a task is left, and is where limits will go. Shims live in a
//! sibling, away from the daemon's own cgroup, so that stopping its unit leaves the tasks alone.
//! Without such a tree tasks run all the same: ending process 1 of a task ends all of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::executor::ExecutorError;

/// The shims' own cgroup; no task's id is that short.
const SHIMS: &str = "shims";
/// A killed process leaves its cgroup when it has been waited for.
const EMPTY_POLL: Duration = Duration::from_millis(10);
/// About five seconds; what is not gone by then hangs in the kernel.
const EMPTY_POLLS: u32 = 500;

/// The tasks' cgroups.
#[derive(Debug)]
pub(super) struct Cgroups {
    root: Option<PathBuf>,
}

impl Cgroups {
    /// Makes the root; says once in the log when there can be none.
    pub(super) fn open(root: Option<PathBuf>) -> Self {
        let Some(root) = root else {
            tracing::warn!("no cgroup root is set: tasks run without cgroups of their own");
            return Self { root: None };
        };
        match make_root(&root) {
            Ok(()) => Self { root: Some(root) },
            Err(error) => {
                tracing::warn!(
                    root = %root.display(), %error,
                    "no cgroup version 2 tree: tasks run without cgroups of their own"
                );
                Self { root: None }
            }
        }
    }

    /// Where shims go.
    pub(super) fn shims(&self) -> Option<PathBuf> {
        self.root.as_ref().map(|root| root.join(SHIMS))
    }

    /// Makes the task's cgroup.
    pub(super) fn make(&self, task_id: &str) -> Result<Option<PathBuf>, ExecutorError> {
        let Some(root) = &self.root else { return Ok(None) };
        let path = root.join(task_id);
        fs::create_dir_all(&path).map_err(|error| failed("make", &path, &error))?;
        Ok(Some(path))
    }

    /// Kills what is left in the task's cgroup, and removes it.
    pub(super) async fn remove(&self, task_id: &str) -> Result<(), ExecutorError> {
        let Some(root) = &self.root else { return Ok(()) };
        let path = root.join(task_id);
        if !path.exists() {
            return Ok(());
        }
        fs::write(path.join("cgroup.kill"), "1").map_err(|error| failed("kill", &path, &error))?;
        let mut polls = 0;
        loop {
            match fs::remove_dir(&path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if polls == EMPTY_POLLS => {
                    return Err(failed("remove", &path, &error));
                }
                Err(_) => polls += 1,
            }
            tokio::time::sleep(EMPTY_POLL).await;
        }
    }
}

fn make_root(root: &Path) -> io::Result<()> {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or_else(|| Path::new("/"));
    if statfs(existing)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
        let text = format!("{} is not in a cgroup2 file system", root.display());
        return Err(io::Error::other(text));
    }
    fs::create_dir_all(root.join(SHIMS))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> ExecutorError {
    ExecutorError(format!("{what} cgroup {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_version_2_tree_there_are_no_cgroups_and_no_errors() {
        let elsewhere = tempfile::tempdir().unwrap();
        for root in [None, Some(elsewhere.path().join("shoal"))] {
            let cgroups = Cgroups::open(root);
            assert_eq!(cgroups.make("task"), Ok(None));
            assert_eq!(cgroups.shims(), None);
            assert_eq!(cgroups.remove("task").await, Ok(()));
        }
        assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0);
    }
}
