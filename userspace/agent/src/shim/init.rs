//! The task's first process, from the fork to the exec.
//!
//! It is process 1 of the task's own process namespace, and stays it: the command replaces it, as
//! in Docker without `--init`. It takes turns with the shim over one socket: `go` when its cgroup
//! is right, then it makes namespaces and root and says `ready`; at `start` it gives up its
//! privileges and runs the command. That the socket closes says that the command runs; anything
//! else on it is why it does not.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{
    AccessFlags, access, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, read, sethostname,
    setsid, write,
};

use super::protocol::Config;
use super::{mounts, privileges, sys};

/// Said by the shim: the cgroup is right.
pub(super) const GO: &[u8] = b"go";
/// Said by the task: namespaces and root are made.
pub(super) const READY: &[u8] = b"ready";
/// Said by the shim: run the command.
pub(super) const START: &[u8] = b"start";

/// Where commands are looked for when the task's environment does not say; Docker's default.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit code when the command cannot run, as shells have it.
const CANNOT_RUN: i32 = 127;

/// Runs in the child and does not return: the command takes over, or the reason goes over
/// `control` and the process ends.
pub(super) fn run(config: &Config, control: &OwnedFd, output: &OwnedFd) -> ! {
    let error = match set_up(config, control, output) {
        Ok(()) => exec(config),
        Err(error) => error,
    };
    // Nobody is left to tell when even this fails: the shim sees the exit.
    let _ = write(control, error.as_bytes());
    std::process::exit(CANNOT_RUN)
}

/// Everything up to the moment before the command; returns at `start`.
fn set_up(config: &Config, control: &OwnedFd, output: &OwnedFd) -> Result<(), String> {
    // Without the shim nobody would record how the task ends.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed("set the death signal", errno))?;
    setsid().map_err(|errno| failed("start a session", errno))?;
    hear(control, GO)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(|errno| failed("make namespaces", errno))?;
    sethostname(&config.hostname).map_err(|errno| failed("set the host name", errno))?;
    mounts::enter_root(config).map_err(|error| error.to_string())?;
    standard_streams(output).map_err(|errno| failed("set standard streams", errno))?;
    write(control, READY).map_err(|errno| failed("say ready", errno))?;
    hear(control, START)
}

/// Waits for the shim's word.
fn hear(control: &OwnedFd, word: &[u8]) -> Result<(), String> {
    let mut buffer = [0; 16];
    let length = read(control, &mut buffer).map_err(|errno| failed("hear the shim", errno))?;
    if &buffer[..length] == word { Ok(()) } else { Err("the shim is gone".into()) }
}

fn standard_streams(output: &OwnedFd) -> nix::Result<()> {
    dup2_stdin(open("/dev/null", OFlag::O_RDONLY, Mode::empty())?.as_fd())?;
    dup2_stdout(output.as_fd())?;
    dup2_stderr(output.as_fd())
}

/// Runs the command; returns why it could not, in Docker's words.
fn exec(config: &Config) -> String {
    match try_exec(config) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

fn try_exec(config: &Config) -> Result<std::convert::Infallible, String> {
    let dir = if config.dir.is_empty() { "/" } else { &config.dir };
    chdir(dir).map_err(|errno| format!("chdir to cwd ({dir:?}) failed: {}", reason(errno)))?;
    let name = config.argv.first().ok_or("no command specified")?;
    let path = find(name, &config.env)?;
    let argv = strings(&config.argv)?;
    let env = strings(&config.env)?;
    sys::reset_signals().map_err(|errno| failed("reset signals", errno))?;
    sys::close_on_exec_from(3).map_err(|error| format!("close descriptors: {error}"))?;
    privileges::drop_privileges().map_err(|error| format!("drop privileges: {error}"))?;
    // A change of identity may have cleared it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed("set the death signal", errno))?;
    let path = CString::new(path).map_err(|_| format!("exec: {name:?}: invalid argument"))?;
    execve(&path, &argv, &env).map_err(|errno| format!("exec: {name:?}: {}", reason(errno)))
}

/// The command's file: as it is when it names a folder, else the first in `PATH` that can run.
fn find(name: &str, env: &[String]) -> Result<Vec<u8>, String> {
    if name.contains('/') {
        return match runnable(Path::new(name)) {
            Ok(()) => Ok(name.as_bytes().to_vec()),
            Err(Errno::ENOENT) => {
                Err(format!("exec: {name:?}: stat {name}: no such file or directory"))
            }
            Err(errno) => Err(format!("exec: {name:?}: {}", reason(errno))),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(PATH);
    path.split(':')
        .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(name))
        .find(|candidate| !name.is_empty() && runnable(candidate).is_ok())
        .map(|found| OsStr::new(&found).as_bytes().to_vec())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn runnable(path: &Path) -> nix::Result<()> {
    let metadata = std::fs::metadata(path)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    access(path, AccessFlags::X_OK)
}

fn strings(texts: &[String]) -> Result<Vec<CString>, String> {
    texts
        .iter()
        .map(|text| CString::new(text.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| "command and environment cannot hold a zero byte".into())
}

fn failed(what: &str, errno: Errno) -> String {
    format!("{what}: {}", io::Error::from(errno))
}

/// The kernel's words as Docker's engine has them: in lower case.
fn reason(errno: Errno) -> String {
    errno.desc().to_lowercase()
}
