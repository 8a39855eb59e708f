//! Benchmarks. None exists yet: asking for one fails.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {}

/// Fails until there is something to measure.
pub fn run(_: Args) -> Result<ExitCode> {
    crate::setup::for_bench()?;
    bail!("no benchmark exists yet")
}
