//! Small helpers around processes and the workspace's place.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The workspace's root.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().expect("xtask is a folder of the workspace");
    root.canonicalize().unwrap_or_else(|_| root.to_owned())
}

/// Runs a command to its end, its output where ours goes; a failure is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    let status = command.status().with_context(|| format!("cannot run {line}"))?;
    ensure!(status.success(), "`{line}`: {status}");
    Ok(())
}

/// The cargo that runs us, for a chore in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The cargo and rustup of the user, free of what this run of cargo put into the environment:
/// another toolchain may be meant.
pub fn free(program: &str) -> Command {
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let ours = name.starts_with("CARGO_PKG") || name.starts_with("CARGO_MANIFEST");
        if ours || ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC", "RUSTFLAGS"].contains(&&*name) {
            command.env_remove(&key);
        }
    }
    command
}

/// Finds a program as a shell would, cargo's own folder included.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .chain(usual)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process is root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Refuses a chore that makes things in the kernel, before it builds anything.
pub fn need_root(chore: &str) -> Result<()> {
    ensure!(is_root(), "{chore} needs root: it makes network namespaces and loads programs");
    Ok(())
}

fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line += &arg.to_string_lossy();
    }
    line
}
