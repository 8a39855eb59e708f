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
mod leaving;
mod listening;
mod managers;
mod news;
mod reporter;
mod session;
pub mod shim;
mod task;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use shoal_api::{NodeDescription, SessionRequest, Standing};
use shoal_routing::Lower;
use shoal_transport::Credentials;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::disk::TaskFiles;
use crate::executor::Executor;
use crate::executor::native::{Native, Options};
pub use crate::kernel::{Counters, Kernel, KernelError};
pub use crate::leaving::remove_tasks;
use crate::managers::Managers;
use crate::news::News;
use crate::reporter::Reporter;
use crate::session::Session;
use crate::task::Sinks;
use crate::worker::Worker;

/// Folder in the daemon's with one folder per task.
const TASKS: &str = "tasks";
/// File in the daemon's folder.
const MANAGERS: &str = "managers.json";

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's id.
    pub node_id: String,
    /// The daemon's folder; the agent uses `tasks/` and `managers.json` in it.
    pub state_dir: PathBuf,
    /// `HOST:PORT` of managers to begin with, and to come back to: names are looked up at each try.
    /// Without any, those of the last start.
    pub managers: Vec<String>,
    /// This node's certificate, and whom it trusts. Whoever renews it replaces the content.
    pub credentials: Credentials,
    /// `HOST:PORT` at which this node is, or as a manager would be, reached.
    pub addr: String,
    /// Random for each start of a daemon.
    pub instance: String,
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
    remove: Option<oneshot::Sender<()>>,
    standing: watch::Receiver<Option<Standing>>,
    refused: watch::Receiver<Option<String>>,
    managers: watch::Receiver<Vec<String>>,
    state_dir: PathBuf,
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
            tasks_dir: config.state_dir.join(TASKS),
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
        let tasks = config.state_dir.join(TASKS);
        let files = TaskFiles::open(tasks.clone()).map_err(error(&tasks))?;
        let file = config.state_dir.join(MANAGERS);
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
            instance: config.instance,
            addr: config.addr,
        };
        let news = News::new();
        news.managers.send_replace(managers.all());
        let (standing, refused) = (news.standing.subscribe(), news.refused.subscribe());
        let known = news.managers.subscribe();
        let session = Session {
            request,
            credentials: config.credentials,
            news,
            managers,
            worker,
            kernel: kernel.clone(),
            reporter,
        };
        let (remove, removed) = oneshot::channel();
        Ok(Self {
            kernel,
            session: tokio::spawn(session.run(removed)),
            remove: Some(remove),
            standing,
            refused,
            managers: known,
            state_dir: config.state_dir,
        })
    }

    /// What the cluster wants this node's certificate to say and whom it is to trust, as the
    /// managers said last; `None` before the first session.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Option<Standing>> {
        self.standing.clone()
    }

    /// Why the managers do not want this node, in their words, while they do not: it was removed,
    /// or a copy of it is in the cluster.
    #[must_use]
    pub fn refused(&self) -> watch::Receiver<Option<String>> {
        self.refused.clone()
    }

    /// Addresses of managers as known now: those that the managers said, then those given.
    #[must_use]
    pub fn managers(&self) -> Vec<String> {
        self.managers.borrow().clone()
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

    /// For a node that leaves its cluster: ends the session, stops all tasks, each in its grace
    /// period, removes them and what the agent keeps on disk, and lets the data plane go as
    /// [`shutdown`](Self::shutdown) does.
    pub async fn remove_all(mut self) {
        if let Some(remove) = self.remove.take() {
            // It has ended already if nobody listens.
            let _ = remove.send(());
        }
        let _ = (&mut self.session).await;
        self.kernel.stop().await;
        leaving::remove_files(&self.state_dir);
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
