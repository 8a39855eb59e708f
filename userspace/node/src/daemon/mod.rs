//! `shoal daemon`: one host's part of a cluster.
//!
//! Takes the state directory's lock, opens the local socket, goes on with what the state says
//! (data plane, manager, agent, in this order), serves, and ends at SIGTERM or SIGINT. Tasks and
//! forwarding stay as they are when it ends, however it ends.
//!
//! Whatever fails before it serves is one sentence on stderr and exit code 1.

mod certificates;
mod cluster;
mod gate;
mod host;
mod local;
mod membership;
mod renewal;
mod sockets;
mod state;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use cluster::Cluster;
use state::StateDir;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Why it cannot serve, or cannot go on.
pub fn main(config: Config) -> anyhow::Result<()> {
    start_log(&config)?;
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "shoal daemon needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN): run it as root"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(config));
    // Work that hangs, as a name that does not resolve, must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn run(config: Config) -> anyhow::Result<()> {
    // First, so that an early signal ends it in order too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let state = StateDir::open(&config.state_dir)?;
    let socket = sockets::LocalSocket::bind(&config.socket)?;
    let (cluster, mut fatal) = Cluster::new(config, state);
    cluster.resume().await?;
    let serving = socket.serve(local::Local::new(cluster.clone()), cluster.gate());
    info!(socket = %socket.path().display(), version = env!("CARGO_PKG_VERSION"), "daemon serves");
    let reason = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = fatal.recv() => reason,
    };
    info!("daemon ends; tasks and forwarding stay");
    cluster.stop().await;
    serving.abort();
    drop(socket);
    match reason {
        Some(reason) => Err(anyhow::anyhow!(reason)).context("the daemon cannot go on"),
        None => Ok(()),
    }
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    // Raft tells each of its steps at info, and each try to reach a lost peer at warn; who wants to
    // see them names it.
    let quiet = if config.log_level.contains("openraft") { "" } else { ",openraft=error" };
    let filter = EnvFilter::try_new(format!("{}{quiet}", config.log_level));
    let filter = filter.map_err(|_| {
        let level = &config.log_level;
        anyhow::anyhow!("{level:?} is not a log level: use error, warn, info, debug or trace")
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
