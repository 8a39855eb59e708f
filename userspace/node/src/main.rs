//! The `shoal` binary: configuration, wiring of the daemon, command line. No policy.
//!
//! A task's shim is this binary again, started before any thread exists; all else goes through
//! `cli`.

mod cli;
mod config;
mod daemon;
mod responder;
mod sentence;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|verb| verb == "shim") {
        shoal_agent::shim::main(arguments)
    }
    cli::main()
}
