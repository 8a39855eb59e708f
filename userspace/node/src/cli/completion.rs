//! `shoal completion`: the completion script of a shell.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;

/// Flags and arguments of `shoal completion`.
#[derive(clap::Args)]
pub struct Args {
    /// The shell to complete in.
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) {
    clap_complete::generate(args.shell, &mut Cli::command(), "shoal", &mut std::io::stdout());
}
