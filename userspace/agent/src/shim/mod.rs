//! One task's keeper: a small process that outlives the daemon.
//!
//! Started as `shoal shim --dir TASK_DIR` by the native executor, before any thread exists in it.
//! It forks away from the daemon, makes the task's namespaces, waits for the word to start, keeps
//! the output and records how the task ended. It decides nothing: when to start, stop or remove is
//! the daemon's to say over a socket (`protocol.rs`). A task cannot outlive its shim.

mod init;
mod mounts;
mod output;
mod privileges;
pub(crate) mod protocol;
mod server;
mod sys;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, pipe2, read, setsid, write};

pub(crate) use mounts::inside;
use protocol::{COMPLAINTS, CONFIG, Config, EXIT, LOCK, ROOT, SOCKET};

/// How long the namespaces and the root may take to make.
const SET_UP_SECONDS: i64 = 20;

/// Why the shim does not run.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    /// The daemon calls it otherwise.
    #[error("usage: shoal shim --dir TASK_DIR")]
    Usage,
    /// A step failed.
    #[error("{what}: {source}")]
    Step { what: &'static str, source: io::Error },
    /// The task's first process could not make its root; its own words.
    #[error("{0}")]
    Task(String),
}

/// Runs `shoal shim`; `args` is what follows the word `shim`.
///
/// Must be called before the process has a second thread. Returns to its caller's process only
/// when the task is ready to start (exit code 0) or cannot be (1, with a sentence on standard
/// error); the shim itself goes on in the background.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    let code = match launch(args) {
        Ok(()) => 0,
        Err(error) => {
            // Standard error may be closed by now.
            let _ = writeln!(io::stderr(), "{error}");
            1
        }
    };
    std::process::exit(code)
}

/// The process that the daemon waits for: forks the shim and passes on how it fared.
fn launch(args: impl IntoIterator<Item = OsString>) -> Result<(), ShimError> {
    let dir = arguments(args)?;
    sys::close_on_exec_from(3).map_err(|source| step("close descriptors", source))?;
    chdir(&dir).map_err(|errno| step("enter the task's folder", errno.into()))?;
    let (hear, tell) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| step("pipe", errno.into()))?;
    if sys::fork().map_err(|errno| step("fork", errno.into()))?.is_none() {
        drop(hear);
        std::process::exit(keep(&tell));
    }
    drop(tell);
    // One read, not all until the end: the task's first process holds the other end until its exec.
    let mut answer = [0; 4_096];
    let length = read(&hear, &mut answer).map_err(|errno| step("hear", errno.into()))?;
    match String::from_utf8_lossy(&answer[..length]).as_ref() {
        "ok" => Ok(()),
        "" => Err(ShimError::Task("the shim died while it prepared the task".into())),
        answer => Err(ShimError::Task(answer.to_owned())),
    }
}

fn arguments(args: impl IntoIterator<Item = OsString>) -> Result<PathBuf, ShimError> {
    let mut args = args.into_iter();
    match (args.next(), args.next(), args.next()) {
        (Some(flag), Some(dir), None) if flag == "--dir" => Ok(dir.into()),
        _ => Err(ShimError::Usage),
    }
}

/// The shim: says `ok` or why not over `tell`, then serves until the task has ended.
fn keep(tell: &OwnedFd) -> i32 {
    match prepare() {
        Ok(mut shim) => {
            // The daemon may be gone: the shim serves the next one.
            let _ = write(tell, b"ok");
            if let Err(error) = shim.serve() {
                eprintln!("shim: {error}");
                return 1;
            }
            0
        }
        Err(error) => {
            let _ = write(tell, error.to_string().as_bytes());
            1
        }
    }
}

/// Everything up to a task that waits for its start.
fn prepare() -> Result<server::Shim, ShimError> {
    setsid().map_err(|errno| step("start a session", errno.into()))?;
    own_streams().map_err(|source| step("open the shim's log", source))?;
    let lock = lock().map_err(|source| step("another shim keeps this task", source))?;
    let config = fs::read(CONFIG).map_err(|source| step("read config.json", source))?;
    let config: Config = serde_json::from_slice(&config)
        .map_err(|error| step("read config.json", io::Error::other(error)))?;
    if let Some(cgroup) = &config.shim_cgroup {
        join(cgroup, Pid::this()).map_err(|source| step("enter the shims' cgroup", source))?;
    }
    make_folder(Path::new(ROOT)).map_err(|source| step("make the root's folder", source))?;
    for stale in [SOCKET, EXIT] {
        remove_stale(Path::new(stale)).map_err(|source| step("remove old files", source))?;
    }
    let listener = UnixListener::bind(SOCKET).map_err(|source| step("listen", source))?;
    let (output, task_output) =
        pipe2(OFlag::O_CLOEXEC).map_err(|errno| step("pipe", errno.into()))?;
    let (control, task_control) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| step("socketpair", errno.into()))?;
    setsockopt(&control, sockopt::ReceiveTimeout, &TimeVal::seconds(SET_UP_SECONDS))
        .map_err(|errno| step("set a timeout", errno.into()))?;

    // The next process to be forked is number 1 of a namespace of its own.
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| step("unshare", errno.into()))?;
    let Some(task) = sys::fork().map_err(|errno| step("fork the task", errno.into()))? else {
        // Its copies of the shim's ends: the shim must see its own death only.
        drop((listener, output, control, lock));
        init::run(&config, &task_control, &task_output)
    };
    drop((task_control, task_output));
    if let Some(cgroup) = &config.cgroup {
        join(cgroup, task).map_err(|source| step("enter the task's cgroup", source))?;
    }
    write(&control, init::GO).map_err(|errno| step("wake the task", errno.into()))?;
    let mut word = [0; 4_096];
    match read(&control, &mut word) {
        Ok(length) if &word[..length] == init::READY => {}
        Ok(0) => return Err(ShimError::Task("the task died while its root was made".into())),
        Ok(length) => {
            return Err(ShimError::Task(String::from_utf8_lossy(&word[..length]).into_owned()));
        }
        Err(errno) => return Err(step("wait for the task's root", errno.into())),
    }
    server::Shim::new(task, control, output, listener, lock)
        .map_err(|source| step("watch the task", source))
}

/// Cuts the shim off from the daemon's streams; complaints go to a file.
fn own_streams() -> io::Result<()> {
    let complaints = OpenOptions::new().create(true).append(true).open(COMPLAINTS)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(null.as_fd())?;
    dup2_stdout(complaints.as_fd())?;
    dup2_stderr(complaints.as_fd())?;
    Ok(())
}

/// Takes the record lock that says that this task has a shim. It goes with the process, and only
/// with it: a forked child has no part in it.
fn lock() -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(LOCK)?;
    fcntl(&file, FcntlArg::F_SETLK(&write_lock()))?;
    Ok(file)
}

/// A lock for writing on a whole file, as `fcntl` wants it.
pub(crate) fn write_lock() -> libc::flock {
    let kind = libc::c_short::try_from(libc::F_WRLCK).expect("the kernel's own constant fits");
    let whence = libc::c_short::try_from(libc::SEEK_SET).expect("the kernel's own constant fits");
    libc::flock { l_type: kind, l_whence: whence, l_start: 0, l_len: 0, l_pid: 0 }
}

fn join(cgroup: &Path, pid: Pid) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string())
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn step(what: &'static str, source: io::Error) -> ShimError {
    ShimError::Step { what, source }
}
