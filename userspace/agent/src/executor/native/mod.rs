//! Runs tasks without an engine: one shim per task, which outlives the daemon.
//!
//! The image is `rootfs:/DIR`, a folder of this host that becomes the task's root, read-only;
//! `rootfs:/` is the host's own root. A task of `rootfs:/` can read what root on the host can read,
//! except the daemon's own folder, and connect to Unix sockets outside `/run`, `/tmp` and `/dev`. It
//! shares the daemon's session keyring. Limits on CPU and memory, users other than root, volumes,
//! seccomp and images from registries are not there yet.

mod cgroup;
mod client;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::Signal;
use shoal_api::{ContainerSpec, Task};
use tokio::process::Command;

use self::cgroup::Cgroups;
use self::client::Client;
use super::{Controller, Executor, ExecutorError, Exit, Standing};
use crate::shim::protocol::{self, CONFIG, Reply, Request, Stage};

/// How long a shim may take until its task waits for its start; its own limit is shorter.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// Commands are looked for here, as in Docker.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Characters of the task's id that make its host name; Docker's length.
const HOSTNAME_LENGTH: usize = 12;

/// What the native executor needs to know about its node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder that holds one folder per task.
    pub tasks_dir: PathBuf,
    /// The daemon's folder, which tasks must not see.
    pub state_dir: PathBuf,
    /// Binary whose `shim` subcommand is [`shim::main`](crate::shim::main).
    pub shim_exe: PathBuf,
    /// Folder in a cgroup version 2 tree that holds one cgroup per task.
    pub cgroup_root: Option<PathBuf>,
    /// This node's id, for the tasks' environment.
    pub node_id: String,
    /// This node's name, for the tasks' environment.
    pub node_name: String,
}

/// The embedded executor.
#[derive(Debug)]
pub struct Native {
    options: Arc<Options>,
    cgroups: Arc<Cgroups>,
}

impl Native {
    /// An executor; says once in the log when tasks go without cgroups.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let cgroups = Arc::new(Cgroups::open(options.cgroup_root.clone()));
        Self { options: Arc::new(options), cgroups }
    }
}

impl Executor for Native {
    fn controller(&self, task: &Task) -> Box<dyn Controller> {
        let dir = self.options.tasks_dir.join(&task.id);
        Box::new(NativeController {
            task: task.clone(),
            client: Client::new(dir.clone()),
            dir,
            options: Arc::clone(&self.options),
            cgroups: Arc::clone(&self.cgroups),
        })
    }
}

#[derive(Debug)]
struct NativeController {
    task: Task,
    /// The task's folder.
    dir: PathBuf,
    client: Client,
    options: Arc<Options>,
    cgroups: Arc<Cgroups>,
}

impl NativeController {
    /// What the shim is told, or why the task can never run.
    fn config(&self) -> Result<protocol::Config, ExecutorError> {
        let container = self.task.spec.as_ref().and_then(|spec| spec.container.as_ref());
        let container = container.ok_or_else(|| ExecutorError("no container spec".into()))?;
        let root = image(&container.image)?;
        let argv: Vec<String> = container.command.iter().chain(&container.args).cloned().collect();
        if argv.is_empty() {
            return Err(ExecutorError("no command specified".into()));
        }
        let hostname: String = self.task.id.chars().take(HOSTNAME_LENGTH).collect();
        Ok(protocol::Config {
            env: self.environment(container, &hostname),
            hostname,
            hide: crate::shim::inside(&root, &self.options.state_dir).into_iter().collect(),
            root,
            argv,
            dir: container.dir.clone(),
            cgroup: self.cgroups.make(&self.task.id)?,
            shim_cgroup: self.cgroups.shims(),
        })
    }

    /// Defaults, then what every task is told about itself, then the spec's, which win.
    fn environment(&self, container: &ContainerSpec, hostname: &str) -> Vec<String> {
        let mut env = vec![
            PATH.to_owned(),
            format!("HOSTNAME={hostname}"),
            "HOME=/root".to_owned(),
            format!("SHOAL_TASK_ID={}", self.task.id),
            format!("SHOAL_TASK_NAME={}", self.task.name()),
            format!("SHOAL_NODE_ID={}", self.options.node_id),
            format!("SHOAL_NODE_NAME={}", self.options.node_name),
        ];
        for entry in &container.env {
            // `NAME` alone takes the variable away, as in Docker.
            let name = entry.split('=').next().unwrap_or_default();
            env.retain(|old| old.split('=').next() != Some(name));
            if entry.contains('=') {
                env.push(entry.clone());
            }
        }
        env
    }

    async fn ask(&self, request: Request) -> Result<Reply, ExecutorError> {
        let reply = self.client.ask(request).await;
        reply.map_err(|error| ExecutorError(format!("the task's shim does not answer: {error}")))
    }

    /// Sends a signal; a task that has ended needs none.
    async fn signal(&self, signal: Signal) -> Result<(), ExecutorError> {
        let request = Request::Signal { number: signal as i32 };
        loop {
            match self.client.ask(request).await {
                Ok(Reply { error: Some(error), .. }) => return Err(ExecutorError(error)),
                Ok(_) => return Ok(()),
                Err(_) if !self.client.shim_lives() => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(failed("signal the task", &error));
                }
                // The shim is on its way down.
                Err(_) => tokio::time::sleep(client::POLL).await,
            }
        }
    }
}

#[async_trait]
impl Controller for NativeController {
    async fn inspect(&mut self) -> Result<Standing, ExecutorError> {
        loop {
            if let Some(exit) = self.client.recorded_exit() {
                return Ok(Standing::Ended(exit.into()));
            }
            match self.client.ask(Request::Status).await {
                Ok(reply) => {
                    let pid = u32::try_from(reply.pid).unwrap_or_default();
                    match (reply.stage, reply.exit) {
                        (Stage::Created, _) => return Ok(Standing::Created { pid }),
                        (Stage::Running, _) => return Ok(Standing::Running { pid }),
                        (Stage::Exited, Some(exit)) => return Ok(Standing::Ended(exit.into())),
                        // It is about to write its record.
                        (Stage::Exited, None) => {}
                    }
                }
                // Its record may have come between the two looks.
                Err(_) if !self.client.shim_lives() => {
                    return Ok(match self.client.recorded_exit() {
                        Some(exit) => Standing::Ended(exit.into()),
                        None => Standing::Absent,
                    });
                }
                Err(_) => {}
            }
            tokio::time::sleep(client::POLL).await;
        }
    }

    async fn prepare(&mut self) -> Result<(), ExecutorError> {
        if matches!(self.inspect().await?, Standing::Created { .. }) {
            return Ok(());
        }
        let config = self.config()?;
        let json = serde_json::to_vec_pretty(&config).expect("plain fields have a JSON form");
        fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write(self.dir.join(CONFIG), json))
            .map_err(|error| failed("write the shim's configuration", &error))?;
        let output = Command::new(&self.options.shim_exe)
            .args(["shim", "--dir"])
            .arg(&self.dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        let output = tokio::time::timeout(PREPARE_TIMEOUT, output)
            .await
            .map_err(|_| ExecutorError("the task's shim did not get ready".into()))?
            .map_err(|error| failed("start the task's shim", &error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(ExecutorError(format!("preparing container failed: {}", said.trim())))
    }

    async fn netns(&mut self) -> Result<OwnedFd, ExecutorError> {
        let reply = self.ask(Request::Status).await?;
        let path = format!("/proc/{}/ns/net", reply.pid);
        let file = fs::File::open(&path).map_err(|error| failed(&path, &error))?;
        // The process had not been waited for a moment later, so the number was still its own.
        let reply = self.ask(Request::Status).await?;
        match reply.stage {
            Stage::Exited => Err(ExecutorError("the task has ended".into())),
            Stage::Created | Stage::Running => Ok(file.into()),
        }
    }

    async fn start(&mut self) -> Result<u32, ExecutorError> {
        let reply = self.ask(Request::Start).await?;
        match reply.error {
            Some(error) => Err(ExecutorError(format!("starting container failed: {error}"))),
            None => Ok(u32::try_from(reply.pid).unwrap_or_default()),
        }
    }

    async fn wait(&mut self) -> Result<Exit, ExecutorError> {
        loop {
            if let Ok(Reply { exit: Some(exit), .. }) = self.client.wait().await {
                return Ok(exit.into());
            }
            match self.inspect().await? {
                Standing::Ended(exit) => return Ok(exit),
                Standing::Absent => {
                    let error = "the task's shim died before it could tell how the task ended";
                    return Ok(Exit { code: None, error: Some(error.into()) });
                }
                Standing::Created { .. } | Standing::Running { .. } => {
                    tokio::time::sleep(client::POLL).await;
                }
            }
        }
    }

    async fn shutdown(&mut self) -> Result<(), ExecutorError> {
        self.signal(Signal::SIGTERM).await
    }

    async fn terminate(&mut self) -> Result<(), ExecutorError> {
        self.signal(Signal::SIGKILL).await
    }

    async fn remove(&mut self) -> Result<(), ExecutorError> {
        self.signal(Signal::SIGKILL).await?;
        while self.client.shim_lives() {
            tokio::time::sleep(client::POLL).await;
        }
        self.cgroups.remove(&self.task.id).await
    }
}

impl From<protocol::Exit> for Exit {
    fn from(exit: protocol::Exit) -> Self {
        let error = exit.error.map(|error| format!("starting container failed: {error}"));
        Self { code: Some(exit.code), error }
    }
}

/// The folder that an image reference names.
fn image(reference: &str) -> Result<PathBuf, ExecutorError> {
    let missing = || ExecutorError(format!("No such image: {reference}"));
    let dir = reference.strip_prefix("rootfs:").filter(|dir| dir.starts_with('/'));
    let dir = Path::new(dir.ok_or_else(missing)?);
    // Resolved here, so that the daemon's folder is found inside it.
    let dir = dir.canonicalize().map_err(|_| missing())?;
    if dir.is_dir() { Ok(dir) } else { Err(missing()) }
}

fn failed(what: &str, error: &io::Error) -> ExecutorError {
    ExecutorError(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_folder_of_this_host() {
        let check = |reference: &str, expected: Result<&str, &str>| {
            let got = image(reference).map_err(|error| error.to_string());
            assert_eq!(got, expected.map(PathBuf::from).map_err(str::to_owned));
        };
        check("rootfs:/", Ok("/"));
        check("rootfs:/nowhere/at/all", Err("No such image: rootfs:/nowhere/at/all"));
        check("rootfs:/proc/version", Err("No such image: rootfs:/proc/version"));
        check("nginx:latest", Err("No such image: nginx:latest"));
    }
}
