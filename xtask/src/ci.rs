//! Everything that must pass before a change lands, in the order from fast to slow.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::shell::cargo;
use crate::{build, setup, shell};

/// Runs the steps; the first that fails ends it.
pub fn run() -> Result<ExitCode> {
    setup::for_build()?;
    setup::for_test()?;
    step("fmt", || {
        run_cargo(&["fmt", "--all", "--check"])?;
        // A workspace of its own, which `--all` does not reach.
        run_cargo(&["fmt", "--manifest-path", "ebpf/programs/Cargo.toml", "--check"])
    })?;
    step("tidy", || run_cargo(&["run", "--quiet", "--package", "xtask", "--", "tidy"]))?;
    step("build", || build::shoal(false).map(drop))?;
    step("clippy", || {
        let all = ["--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
        run_cargo(&[["clippy"].as_slice(), &all].concat())
    })?;
    step("test", || run_cargo(&["run", "--quiet", "--package", "xtask", "--", "test"]))?;
    step("demo", || run_cargo(&["run", "--quiet", "--package", "xtask", "--", "demo"]))?;
    Ok(ExitCode::SUCCESS)
}

fn run_cargo(args: &[&str]) -> Result<()> {
    shell::run(cargo().args(args))
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let started = Instant::now();
    work()?;
    eprintln!("== {name}: passed in {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}
