//! The `shoal` binary: configuration, wiring of the daemon, command line. No policy.

mod cli;
mod config;
mod daemon;
mod responder;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
