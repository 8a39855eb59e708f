//! Builds the programs for the kernel: `target/ebpf/shoal.o` and `target/ebpf/bench.o`.
//!
//! They need a compiler whose sysroot holds the library's source, since nobody ships `core` for
//! the BPF target. The first that is found is taken: rustup's nightly, then Debian's. A stamp with
//! the hash of every input makes a build with nothing to do cost milliseconds.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::shell::{cargo, free, run, which};

/// The objects that were built.
#[derive(Debug)]
pub struct Built {
    /// The datapath.
    pub shoal: PathBuf,
    /// What tests and benchmarks load beside it.
    pub bench: PathBuf,
}

/// A compiler with its library's source.
#[derive(Debug, PartialEq, Eq)]
enum Compiler {
    /// A toolchain of rustup, by its name.
    Rustup(String),
    /// Debian's packages `rustc-web` and `cargo-web`.
    Debian,
}

const TARGET: &str = "bpfel-unknown-none";
/// Debian's compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's cargo.
const DEBIAN_CARGO: &str = "/usr/share/cargo/bin/cargo";
/// Where a sysroot holds the library's source.
const SOURCE: &str = "lib/rustlib/src/rust/library/core";
/// Version 3 has 32-bit arithmetic, and Linux 6.1 takes it. A packet's fields lie at odd places:
/// the compiler may read them whole, as the kernel allows on the machines we support. With debug
/// information the verifier's complaints name source lines, and maps are described by BTF.
const RUSTFLAGS: &str = "-Cdebuginfo=2 -Ctarget-cpu=v3 \
    -Ctarget-feature=+allows-misaligned-mem-access -Clink-arg=--btf";

/// Builds the objects unless they are there and nothing changed.
///
/// # Errors
/// No compiler or linker, or a source that does not compile.
pub fn build(root: &Path) -> Result<Built> {
    let folder = root.join("target/ebpf");
    let built = Built { shoal: folder.join("shoal.o"), bench: folder.join("bench.o") };
    let compiler = Compiler::find()?;
    let stamp_file = folder.join("stamp");
    let stamp = stamp(root, &compiler)?;
    let is_fresh = built.shoal.exists()
        && built.bench.exists()
        && std::fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp);
    if is_fresh {
        return Ok(built);
    }

    let started = Instant::now();
    let intermediate = root.join("target/ebpf-build");
    compile(root, &intermediate, &compiler)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    let release = intermediate.join(TARGET).join("release");
    replace(&release.join("shoal"), &built.shoal)?;
    replace(&release.join("bench"), &built.bench)?;
    std::fs::write(&stamp_file, stamp).context("cannot write the stamp of the build")?;
    let seconds = started.elapsed().as_secs_f32();
    eprintln!("ebpf: programs built by {compiler} in {seconds:.1} s");
    Ok(built)
}

/// Loads the programs, prints what the verifier and the compiler made of them, and compares with
/// `ebpf/sizes.toml`.
///
/// # Errors
/// A program that grew by more than a fifth, or does not load.
pub fn sizes() -> Result<()> {
    run(cargo().args(["run", "--quiet", "--package", "shoal-tests", "--bin", "programs", "sizes"]))
}

impl Compiler {
    /// The first compiler with its library's source.
    fn find() -> Result<Self> {
        let home = std::env::var_os("RUSTUP_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")));
        let toolchains = home.and_then(|home| std::fs::read_dir(home.join("toolchains")).ok());
        let mut nightlies: Vec<String> = toolchains
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join(SOURCE).is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("nightly"))
            .collect();
        // The plain nightly before dated ones, whose names are longer.
        nightlies.sort_by_key(|name| (name.len(), name.clone()));
        if let Some(name) = nightlies.into_iter().next() {
            return Ok(Self::Rustup(name));
        }
        let source = Path::new("/usr").join(SOURCE);
        if source.is_dir() && Path::new(DEBIAN_CARGO).is_file() {
            return Ok(Self::Debian);
        }
        bail!("no compiler with the library's source: run `cargo xtask setup`")
    }

    fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Rustup(toolchain) => {
                let mut command = free("rustup");
                command.args(["run", toolchain, "cargo"]);
                command
            }
            Self::Debian => {
                let mut command = free(DEBIAN_CARGO);
                // Building the library is a nightly's feature.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        command.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
        command
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustup(toolchain) => write!(f, "rustup's {toolchain}"),
            Self::Debian => write!(f, "Debian's {DEBIAN_RUSTC}"),
        }
    }
}

fn compile(root: &Path, intermediate: &Path, compiler: &Compiler) -> Result<()> {
    let linker = which("bpf-linker").context("no bpf-linker: run `cargo xtask setup`")?;
    let output = compiler
        .cargo()
        .current_dir(root.join("ebpf/programs"))
        .args(["build", "--quiet", "--locked", "--release", "-Zbuild-std=core"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(intermediate)
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .output()
        .with_context(|| format!("cannot run {compiler}"))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("{compiler} could not build the programs for the kernel");
    }
    Ok(())
}

/// Puts a file in another's place in one step, so that nobody loads half an object.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).with_context(|| format!("cannot copy {}", from.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("cannot replace {}", to.display()))
}

/// What the objects depend on: every file under `ebpf`, the compiler and the flags.
fn stamp(root: &Path, compiler: &Compiler) -> Result<String> {
    let mut files = Vec::new();
    collect(&root.join("ebpf"), &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    RUSTFLAGS.hash(&mut hasher);
    for file in &files {
        let bytes = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
        (file.strip_prefix(root).unwrap_or(file), bytes).hash(&mut hasher);
    }
    Ok(format!("{compiler} {:016x}\n", hasher.finish()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "lock")
            || path.file_name().is_some_and(|name| name == "Cargo.toml")
        {
            files.push(path);
        }
    }
    Ok(())
}
