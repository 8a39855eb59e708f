//! The command line: what can be typed, and how it ends.
//!
//! One file per verb. This one holds the tree of verbs and turns every error into one clear
//! sentence on stderr and an exit code: 1 when something failed, 125 when the command itself was
//! wrong, as `docker` does.

mod client;
mod cluster;
mod completion;
mod filter;
mod human;
mod info;
mod inspect;
mod listing;
mod network;
mod node;
mod publish;
mod resolve;
mod service;
mod task;
mod template;
mod usage;

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cli::cluster::{
    backup, ca, init, join, join_token, leave, restore, unlock, unlock_key, update,
};
use crate::config::{self, Environment};

/// Runs services on a cluster of Linux hosts and balances their traffic in the kernel.
#[derive(Parser)]
#[command(name = "shoal", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// Socket of the daemon, also SHOAL_SOCKET in the environment
    /// [default: /run/shoal/shoal.sock].
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file, also SHOAL_CONFIG in the environment
    /// [default: /etc/shoal/shoal.toml where it exists].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run this host's daemon in the foreground.
    Daemon(config::Flags),
    /// Start a cluster with this node as its first manager.
    Init(Box<init::Args>),
    /// Join a cluster.
    Join(join::Args),
    /// Show or change what newcomers present.
    JoinToken(join_token::Args),
    /// Leave the cluster: stop this node's tasks and forget it.
    Leave(leave::Args),
    /// Give this manager its unlock key, from the terminal or stdin.
    Unlock,
    /// Show or change the unlock key.
    UnlockKey(unlock_key::Args),
    /// Show the cluster's root certificate, or roll over to another one.
    Ca(ca::Args),
    /// Change the cluster's settings.
    #[command(arg_required_else_help = true)]
    Update(update::Args),
    /// Write all that this manager knows into one sealed file, while it runs.
    Backup(backup::Args),
    /// Put a backup into this node, which must not be part of a cluster.
    Restore(restore::Args),
    /// Show what the daemon of this host is and holds.
    Info(info::Args),
    /// Manage the cluster's nodes.
    #[command(subcommand)]
    Node(node::Verb),
    /// Manage services.
    #[command(subcommand)]
    Service(service::Verb),
    /// Look at tasks.
    #[command(subcommand)]
    Task(task::Verb),
    /// Look at networks.
    #[command(subcommand)]
    Network(network::Verb),
    /// Print a shell's completion script.
    Completion(completion::Args),
    /// Answer HTTP with the task's and the client's name, for demos and benchmarks.
    #[command(hide = true)]
    Responder(crate::responder::Args),
}

/// The command was wrong, not its outcome: exit code 125.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Parses the command line, does what it says and tells how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", sentence(&error));
            ExitCode::from(if error.is::<Usage>() { usage::EXIT_CODE } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let env = Environment::process();
    match cli.verb {
        Verb::Daemon(flags) => {
            let config = config::load(flags, cli.socket, cli.config.as_deref(), &env)?;
            return crate::daemon::main(config);
        }
        Verb::Completion(args) => {
            completion::run(&args);
            return Ok(());
        }
        Verb::Responder(args) => return crate::responder::main(&args),
        _ => {}
    }
    let socket = config::socket(cli.socket, cli.config.as_deref(), &env)?;
    // A verb waits for one answer after the other: one thread is enough and starts fastest.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client::Client::new(socket);
        match cli.verb {
            Verb::Init(args) => init::run(&client, *args).await,
            Verb::Join(args) => join::run(&client, args).await,
            Verb::JoinToken(args) => join_token::run(&client, args).await,
            Verb::Leave(args) => leave::run(&client, args).await,
            Verb::Unlock => unlock::run(&client).await,
            Verb::UnlockKey(args) => unlock_key::run(&client, args).await,
            Verb::Ca(args) => ca::run(&client, args).await,
            Verb::Update(args) => update::run(&client, args).await,
            Verb::Backup(args) => backup::run(&client, args).await,
            Verb::Restore(args) => restore::run(&client, args).await,
            Verb::Info(args) => info::run(&client, &args).await,
            Verb::Node(verb) => node::run(&client, verb).await,
            Verb::Service(verb) => service::run(&client, verb).await,
            Verb::Task(verb) => task::run(&client, verb).await,
            Verb::Network(verb) => network::run(&client, verb).await,
            Verb::Daemon(_) | Verb::Completion(_) | Verb::Responder(_) => Ok(()),
        }
    })
}

/// An error with its causes on one line; what the daemon answered in its own words.
pub fn sentence(error: &anyhow::Error) -> String {
    if let Some(status) = error.downcast_ref::<tonic::Status>() {
        return format!("Error response from daemon: {}", status.message());
    }
    crate::sentence::sentence(error)
}

/// Prints an answer to stdout.
///
/// `shoal service ls | head -1` ends quietly: the reader has what it wanted.
pub fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        if error.kind() != ErrorKind::BrokenPipe {
            eprintln!("cannot write the answer: {error}");
            std::process::exit(1);
        }
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_of_verbs_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_answer_of_the_daemon_says_that_it_is_one() {
        let status = anyhow::Error::from(tonic::Status::not_found("service x not found"));
        assert_eq!(sentence(&status), "Error response from daemon: service x not found");
        let nested = anyhow::anyhow!("no such file").context("cannot read the spec");
        assert_eq!(sentence(&nested), "cannot read the spec: no such file");
    }
}
