//! The daemon's side of the shim's socket, and of the files that the shim leaves.
//!
//! One connection per request: nothing is remembered that a restarted daemon would miss.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::shim::protocol::{EXIT, Exit, LOCK, Reply, Request, SOCKET};
use crate::shim::write_lock;

/// How long the shim may take for an answer; the command's exec is the longest of its works.
const TIMEOUT: Duration = Duration::from_secs(25);
/// How often a shim that is on its way up or down is looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// One task's shim, as seen from the daemon.
#[derive(Debug)]
pub(super) struct Client {
    dir: PathBuf,
}

impl Client {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Asks and waits for the answer.
    pub(super) async fn ask(&self, request: Request) -> io::Result<Reply> {
        tokio::time::timeout(TIMEOUT, self.exchange(request))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Waits until the shim tells of the task's end, or is gone.
    pub(super) async fn wait(&self) -> io::Result<Reply> {
        self.exchange(Request::Wait).await
    }

    async fn exchange(&self, request: Request) -> io::Result<Reply> {
        // A socket's address holds 108 bytes, a path more: the folder goes in by descriptor.
        let dir = File::open(&self.dir)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
        let mut stream = UnixStream::connect(path).await?;
        let mut line = serde_json::to_vec(&request).expect("a request has a JSON form");
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        if BufReader::new(stream).read_line(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&answer).map_err(io::Error::other)
    }

    /// How the task ended, if its shim recorded that.
    pub(super) fn recorded_exit(&self) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.dir.join(EXIT)).ok()?).ok()
    }

    /// Whether a shim holds the task's lock. Asks only, so it stands in nobody's way.
    pub(super) fn shim_lives(&self) -> bool {
        let file = OpenOptions::new().read(true).write(true).open(self.dir.join(LOCK));
        let Ok(file) = file else { return false };
        let mut lock = write_lock();
        let asked = fcntl(&file, FcntlArg::F_GETLK(&mut lock));
        asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
    }
}
