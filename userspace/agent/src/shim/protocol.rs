//! What daemon and shim say to each other, and the files of a task's folder.
//!
//! The daemon writes `config.json`, starts the shim and talks to it over `shim.sock`: one JSON
//! object per line, a request gets one reply in order. `{"op":"status"}` tells where the task
//! stands, `{"op":"start"}` runs the command and answers when it runs or cannot,
//! `{"op":"signal","number":15}` sends a signal to the task's first process, and `{"op":"wait"}`
//! is answered when the task has ended. How it ended is in `exit.json` too, which appears whole or
//! not at all; after that the shim goes. While it lives it holds a record lock on `shim.lock`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What to run; written by the daemon before the shim starts.
pub(crate) const CONFIG: &str = "config.json";
/// Where the shim listens.
pub(crate) const SOCKET: &str = "shim.sock";
/// Locked by the living shim.
pub(crate) const LOCK: &str = "shim.lock";
/// How the task ended: an [`Exit`].
pub(crate) const EXIT: &str = "exit.json";
/// What the task wrote to its standard output and error.
pub(crate) const OUTPUT: &str = "output.log";
/// The output before the last rotation.
pub(crate) const OUTPUT_OLD: &str = "output.log.1";
/// What the shim itself has to complain about.
pub(crate) const COMPLAINTS: &str = "shim.log";
/// Where the task's root is put together, in its own mount namespace; empty for all others.
pub(crate) const ROOT: &str = "root";

/// One task, as the shim needs to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Host name inside.
    pub hostname: String,
    /// Folder on the host that becomes the task's root, read-only.
    pub root: PathBuf,
    /// Command and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, complete.
    pub env: Vec<String>,
    /// Working directory inside; empty means `/`.
    pub dir: String,
    /// The task's cgroup, made by the daemon.
    pub cgroup: Option<PathBuf>,
    /// Where the shim itself belongs, so that it outlives the daemon's unit.
    pub shim_cgroup: Option<PathBuf>,
    /// Folders inside the root that the task must not see: the daemon's own.
    pub hide: Vec<PathBuf>,
}

/// What the daemon asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Where does the task stand?
    Status,
    /// Run the command.
    Start,
    /// Send a signal to the task's first process.
    Signal {
        /// Its number.
        number: i32,
    },
    /// Answer when the task has ended.
    Wait,
}

/// Where the task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Namespaces and root are made, the command does not run.
    Created,
    /// The command runs.
    Running,
    /// The first process has ended, and with it all others.
    Exited,
}

/// What the shim answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// Where the task stands now.
    pub stage: Stage,
    /// The task's first process, as the host numbers it.
    pub pid: i32,
    /// Why the request could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Exit code; 128 and the signal's number after a signal, as shells and Docker say it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why the command could not even run.
    pub error: Option<String>,
    /// When, in nanoseconds since the epoch.
    pub at_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: Request, line: &str) {
        assert_eq!(serde_json::to_string(&request).unwrap(), line);
        assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
    }

    #[test]
    fn requests_are_the_lines_that_the_header_promises() {
        check(Request::Status, r#"{"op":"status"}"#);
        check(Request::Start, r#"{"op":"start"}"#);
        check(Request::Signal { number: 15 }, r#"{"op":"signal","number":15}"#);
        check(Request::Wait, r#"{"op":"wait"}"#);
    }
}
