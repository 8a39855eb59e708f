//! Every chore of the workspace, as `cargo xtask <chore>`.
//!
//! A newcomer compiles this first, so it is synchronous and leans on few crates. Each chore first
//! makes sure that the machine has what it needs (`setup.rs`), which costs nothing when it has.

mod bench;
mod build;
mod ci;
mod demo;
mod ebpf;
mod fuzz;
mod guard;
mod lab;
mod setup;
mod shell;
mod sim;
mod table;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The chores of the Shoal workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Make this machine ready: toolchain, linker, packages. Quiet when nothing is missing.
    Setup,
    /// Build the programs for the kernel.
    BuildEbpf {
        /// Load them too, and hold their sizes against those recorded.
        #[arg(long)]
        sizes: bool,
    },
    /// Build the programs for the kernel and the `shoal` binary.
    Build {
        /// Optimise, as benchmarks do.
        #[arg(long)]
        release: bool,
    },
    /// Hosts on one switch, each with its daemon, and a client.
    Lab(lab::Args),
    /// A cluster of three hosts, a service, two kills: the promises, shown on real packets.
    Demo(demo::Args),
    /// Run every kind of test that this machine can run, and say what was skipped and why.
    Test(test::Args),
    /// Give the readers of strangers' bytes to cargo-fuzz.
    Fuzz(fuzz::Args),
    /// Run a simulated cluster under many seeds, or under one with all that happens.
    Sim(sim::Args),
    /// Measure.
    Bench(bench::Args),
    /// Check what the compiler does not: imports, headers, sizes, the ABI's hash.
    Tidy(tidy::Args),
    /// Everything that must pass before a change lands: fmt, clippy, tidy, test, demo.
    Ci,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are answers, not faults.
            return if error.use_stderr() { ExitCode::from(125) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli.chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<ExitCode> {
    match chore {
        Chore::Setup => setup::all()?,
        Chore::BuildEbpf { sizes } => {
            build::ebpf()?;
            if sizes {
                ebpf::sizes()?;
            }
        }
        Chore::Build { release } => drop(build::shoal(release)?),
        Chore::Lab(args) => return lab::run(args),
        Chore::Demo(args) => return demo::run(args),
        Chore::Test(args) => return test::run(&args),
        Chore::Fuzz(args) => return fuzz::run_all(&args),
        Chore::Sim(args) => return sim::run(&args),
        Chore::Bench(args) => return bench::run(args),
        Chore::Tidy(args) => return tidy::run(&args),
        Chore::Ci => return ci::run(),
    }
    Ok(ExitCode::SUCCESS)
}
