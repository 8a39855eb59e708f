//! Makes a fresh Debian 12 machine ready, and says nothing when it is.
//!
//! Each chore names what it needs; a need is a file to be found on the disk, so that checking
//! costs microseconds. What is missing is installed by the way that is known to work: packages by
//! apt, the kernel programs' compiler by rustup or, where that fails, from Debian's packages.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell::{free, is_root, run, which};

/// Version that loads the LLVM of the nightly toolchain.
const LINKER: &str = "0.10.4";
/// Version that links Debian's LLVM 22.
const LINKER_DEBIAN: &str = "0.13.0";
/// Debian's compiler for way B of building kernel programs.
const DEBIAN_COMPILER: [&str; 5] =
    ["rustc-web", "cargo-web", "rust-web-src", "libstd-rust-web-dev", "llvm-22-dev"];

/// A program and the Debian package that has it.
type Tool = (&'static str, &'static str);

/// What a lab is made with.
const LAB: [Tool; 3] = [("ip", "iproute2"), ("ethtool", "ethtool"), ("setsid", "util-linux")];
/// What tests ask and listen with, beside a lab's tools.
const TEST: [Tool; 4] = [
    ("tcpdump", "tcpdump"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    // An external CA, as an operator would run it.
    ("cfssl", "golang-cfssl"),
];
/// What benchmarks compare with and measure by.
const BENCH: [Tool; 4] =
    [("nft", "nftables"), ("haproxy", "haproxy"), ("wrk", "wrk"), ("iperf3", "iperf3")];

/// Everything that any chore needs.
pub fn all() -> Result<()> {
    compiler()?;
    packages(&[LAB.as_slice(), &TEST, &BENCH].concat())?;
    nextest()
}

/// What building needs.
pub fn for_build() -> Result<()> {
    compiler()
}

/// What a lab needs.
pub fn for_lab() -> Result<()> {
    packages(&LAB)
}

/// What tests need.
pub fn for_test() -> Result<()> {
    packages(&[LAB.as_slice(), &TEST].concat())?;
    nextest()
}

/// What fuzzing needs, beside a nightly compiler.
pub fn for_fuzz() -> Result<()> {
    if which("cargo-fuzz").is_some() {
        return Ok(());
    }
    step("installing cargo-fuzz (a minute)", || {
        run(free("cargo").args(["install", "--quiet", "--locked", "cargo-fuzz"]))
    })
}

/// What benchmarks need.
pub fn for_bench() -> Result<()> {
    packages(&[LAB.as_slice(), &BENCH].concat())
}

/// Installs the Debian packages of the tools that are not there, in one go.
fn packages(tools: &[Tool]) -> Result<()> {
    let missing = missing_packages(tools, |program| which(program).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    apt(&missing)
}

fn missing_packages(tools: &[Tool], has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut missing: Vec<&str> =
        tools.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

fn apt(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    ensure!(
        is_root(),
        "these Debian packages are missing: {list}. Run `cargo xtask setup` as root once"
    );
    ensure!(
        which("apt-get").is_some(),
        "no apt-get on this machine: install the equivalents of {list} by its own means"
    );
    step(&format!("installing {list}"), || {
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        let mut install = Command::new("apt-get");
        install.args(["-qq", "-y", "install", "--no-install-recommends"]).args(packages);
        // dpkg's progress is of no use to whoever waits for a demo.
        install.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null());
        run(&mut install)
    })
}

fn nextest() -> Result<()> {
    if which("cargo-nextest").is_some() {
        return Ok(());
    }
    step("installing cargo-nextest (a few minutes)", || {
        run(free("cargo").args(["install", "--quiet", "--locked", "cargo-nextest"]))
    })
}

/// A compiler with its library source, and the linker that fits its LLVM.
fn compiler() -> Result<()> {
    if compiler_is_ready() {
        return Ok(());
    }
    let Err(first) = by_rustup() else { return Ok(()) };
    eprintln!("setup: {first:#}; trying Debian's compiler instead");
    by_debian()
        .with_context(|| format!("no compiler for kernel programs: by rustup: {first:#}"))?;
    ensure!(compiler_is_ready(), "the compiler is installed but not where it was expected");
    Ok(())
}

fn compiler_is_ready() -> bool {
    let linker = which("bpf-linker").is_some();
    linker && (nightly_source().is_some() || debian_source().exists())
}

/// The library source of a nightly toolchain.
fn nightly_source() -> Option<PathBuf> {
    let toolchains = rustup_home()?.join("toolchains");
    std::fs::read_dir(toolchains)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("nightly"))
        .map(|entry| entry.path().join("lib/rustlib/src/rust/library/core"))
        .find(|source| source.is_dir())
}

fn rustup_home() -> Option<PathBuf> {
    std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")))
}

fn debian_source() -> PathBuf {
    PathBuf::from("/usr/lib/rustlib/src/rust/library/core")
}

fn has_nightly() -> bool {
    rustup_home().and_then(|home| std::fs::read_dir(home.join("toolchains")).ok()).is_some_and(
        |mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("nightly"))
            })
        },
    )
}

/// Way A: rustup's nightly and the linker that loads its LLVM.
fn by_rustup() -> Result<()> {
    if nightly_source().is_none() {
        if which("rustup").is_none() {
            bail!("no rustup on this machine");
        }
        step("adding the library source to the nightly toolchain", || {
            let mut rustup = free("rustup");
            if has_nightly() {
                rustup.args(["--quiet", "component", "add", "rust-src", "--toolchain", "nightly"]);
            } else {
                rustup.args(["--quiet", "toolchain", "install", "nightly", "--no-self-update"]);
                rustup.args(["--profile", "minimal", "--component", "rust-src"]);
            }
            run(&mut rustup)
        })?;
    }
    if which("bpf-linker").is_some() {
        return Ok(());
    }
    step(&format!("installing bpf-linker {LINKER} (about a minute)"), || {
        let mut cargo = free("cargo");
        cargo.args(["install", "--quiet", "--locked", "bpf-linker", "--version", LINKER]);
        run(&mut cargo)
    })
}

/// Way B: Debian's compiler and LLVM, and the linker built against that.
fn by_debian() -> Result<()> {
    if !debian_source().exists() {
        apt(&DEBIAN_COMPILER)?;
    }
    step(&format!("installing bpf-linker {LINKER_DEBIAN} (about a minute)"), || {
        let mut cargo = free("cargo");
        cargo.args(["install", "--quiet", "--force", "bpf-linker", "--version", LINKER_DEBIAN]);
        cargo.args(["--no-default-features", "--features", "llvm-22"]);
        run(cargo.env("LLVM_PREFIX", "/usr/lib/llvm-22"))
    })
}

/// Says what is done before it is done, and how long it took after.
fn step(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("setup: {what}");
    let started = Instant::now();
    work().with_context(|| format!("failed at: {what}"))?;
    eprintln!("setup: done in {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_asked_for_and_once() {
        let tools = [("a", "one"), ("b", "one"), ("c", "two"), ("d", "three")];
        assert_eq!(missing_packages(&tools, |program| program == "c"), ["one", "three"]);
        assert!(missing_packages(&tools, |_| true).is_empty());
    }
}
