//! Runs the simulated cluster under many seeds, optimised, or under one with all that happens.
//!
//! The simulation is a library with a small program around it (`tests/src/sim`); this builds and
//! starts it, so that `xtask` itself stays quick to compile.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::shell::cargo;

/// Which seeds.
#[derive(clap::Args)]
pub struct Args {
    /// How many seeds to run [default: 1000, or 1 with --seed].
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed. Alone it is run with all that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds that run side by side [default: one for each core].
    #[arg(long)]
    jobs: Option<u64>,
    /// Do not optimise: quicker to build, slower to run.
    #[arg(long)]
    debug: bool,
}

/// Runs the seeds; those that broke a promise are printed, each with the line that repeats it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut sim = cargo();
    sim.args(["run", "--quiet", "--package", "shoal-tests", "--bin", "sim"]);
    sim.args(["--no-default-features", "--features", "sim"]);
    if !args.debug {
        sim.arg("--release");
    }
    sim.arg("--");
    let given = [("--seeds", args.seeds), ("--seed", args.seed), ("--jobs", args.jobs)];
    for (name, value) in given {
        if let Some(value) = value {
            sim.args([name, &value.to_string()]);
        }
    }
    let status = sim.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
