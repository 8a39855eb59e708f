//! A node's agent: runs the tasks that the managers assign and keeps the kernel's tables equal to
//! what they say.
//!
//! [`Agent::start`] takes the data plane as a [`Lower`] and needs a tokio runtime. The session with
//! the managers, the tasks and the data plane go on without each other: no manager means no news,
//! not a stop. Whoever embeds it must route the hidden subcommand `shim` to [`shim::main`] before
//! any thread starts.

mod backoff;
mod disk;
pub mod executor;
mod kernel;
mod listening;
mod managers;
mod reporter;
mod session;
pub mod shim;
mod task;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use shoal_api::{NodeDescription, SessionRequest};
use shoal_routing::Lower;
use tokio::task::JoinHandle;

use crate::disk::TaskFiles;
use crate::executor::Executor;
use crate::executor::native::{Native, Options};
pub use crate::kernel::{Counters, Kernel, KernelError};
use crate::managers::Managers;
use crate::reporter::Reporter;
use crate::session::Session;
use crate::task::Sinks;
use crate::worker::Worker;

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's id.
    pub node_id: String,
    /// The daemon's folder; the agent uses `tasks/` and `managers.json` in it.
    pub state_dir: PathBuf,
    /// host:port of managers to begin with.
    pub managers: Vec<String>,
    /// What the managers are told about this node; its host name is told to the tasks too.
    pub description: NodeDescription,
    /// Address that carries the overlay's packets, without a port.
    pub data_path_addr: String,
    /// Folder in a cgroup version 2 tree, made if needed; `None` runs tasks without cgroups.
    pub cgroup_root: Option<PathBuf>,
    /// Binary whose `shim` subcommand is [`shim::main`]: `/proc/self/exe` in the daemon.
    pub shim_exe: PathBuf,
}

impl Config {
    /// Where the daemon finds itself, also after an upgrade replaced its file.
    pub const SELF: &str = "/proc/self/exe";
}

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct StartError {
    /// File or folder that could not be used.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// A running agent. Dropping it ends the session and leaves tasks and forwarding as they are.
#[derive(Debug)]
pub struct Agent {
    kernel: Kernel,
    session: JoinHandle<()>,
}

impl Agent {
    /// Starts an agent with the native executor: takes over what an earlier one left, then looks
    /// for a manager.
    ///
    /// # Errors
    /// When the state folder cannot be used.
    pub fn start<L: Lower>(config: Config, lower: L) -> Result<Self, StartError> {
        let mut config = config;
        let error = |source| StartError { path: config.state_dir.clone(), source };
        disk::make_private(&config.state_dir).map_err(error)?;
        // As the kernel names it: it is looked for inside the tasks' images.
        config.state_dir = config.state_dir.canonicalize().map_err(error)?;
        let native = Native::new(Options {
            tasks_dir: config.state_dir.join("tasks"),
            state_dir: config.state_dir.clone(),
            shim_exe: config.shim_exe.clone(),
            cgroup_root: config.cgroup_root.clone(),
            node_id: config.node_id.clone(),
            node_name: config.description.hostname.clone(),
        });
        Self::start_with(config, lower, Arc::new(native))
    }

    /// Starts an agent that runs its tasks by the given executor.
    ///
    /// # Errors
    /// When the state folder cannot be used.
    pub fn start_with<L: Lower>(
        config: Config,
        lower: L,
        executor: Arc<dyn Executor>,
    ) -> Result<Self, StartError> {
        let error = |path: &PathBuf| {
            let path = path.clone();
            move |source| StartError { path, source }
        };
        disk::make_private(&config.state_dir).map_err(error(&config.state_dir))?;
        let tasks = config.state_dir.join("tasks");
        let files = TaskFiles::open(tasks.clone()).map_err(error(&tasks))?;
        let file = config.state_dir.join("managers.json");
        let managers = Managers::open(file.clone(), config.managers).map_err(error(&file))?;

        let kernel = Kernel::start(lower, config.node_id.clone());
        let reporter = Reporter::default();
        let sinks = Sinks { files, reporter: reporter.clone() };
        let mut worker = Worker::new(executor, kernel.clone(), sinks);
        worker.adopt().map_err(error(&tasks))?;
        let request = SessionRequest {
            node_id: config.node_id,
            description: Some(config.description),
            data_path_addr: config.data_path_addr,
            ..SessionRequest::default()
        };
        let session = Session { request, managers, worker, kernel: kernel.clone(), reporter };
        Ok(Self { kernel, session: tokio::spawn(session.run()) })
    }

    /// A handle to the data plane's figures, to be kept apart from the agent.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel.clone()
    }

    /// Raft index of the plan that the kernel holds; 0 before the first one.
    #[must_use]
    pub fn held_index(&self) -> u64 {
        self.kernel.held_index()
    }

    /// What the data plane counted, by reason.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub async fn counters(&self) -> Result<Counters, KernelError> {
        self.kernel.counters().await
    }

    /// What the data plane chose at load.
    ///
    /// # Errors
    /// When the lower half is gone.
    pub async fn choices(&self) -> Result<Vec<(String, String)>, KernelError> {
        self.kernel.choices().await
    }

    /// Ends the session and lets the data plane go once its current work is done. Tasks run on, and
    /// the next agent on the same state folder takes them over.
    pub async fn shutdown(mut self) {
        self.session.abort();
        // Its loops must not use the data plane after this returns.
        let _ = (&mut self.session).await;
        self.kernel.stop().await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.session.abort();
    }
}
