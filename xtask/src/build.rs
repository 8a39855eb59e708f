//! Builds the programs for the kernel, then the `shoal` binary that embeds them.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell::{cargo, root, run};
use crate::{ebpf, setup};

/// Builds the programs for the kernel into `target/ebpf`.
pub fn ebpf() -> Result<()> {
    setup::for_build()?;
    ebpf::build(&root())?;
    Ok(())
}

/// Builds everything a daemon needs and gives the binary's path.
///
/// The demo and the tests use the debug build, which keeps the way from an edit to an answer
/// short; benchmarks use the release build.
pub fn shoal(release: bool) -> Result<PathBuf> {
    ebpf()?;
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", "shoal-node", "--bin", "shoal"]);
    if release {
        build.arg("--release");
    }
    run(&mut build)?;
    let profile = if release { "release" } else { "debug" };
    Ok(target().join(profile).join("shoal"))
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}
