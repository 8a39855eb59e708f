//! The shim's one loop: the task's output, its end, and what the daemon asks.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read, write};

use super::init::START;
use super::output::{LIMIT, Output};
use super::protocol::{EXIT, Exit, Reply, Request, SOCKET, Stage};
use super::remove_stale;

/// Connections at a time: the daemon needs two, a person at a shell another.
const CLIENTS: usize = 16;
/// A request is a short line; more without an end is not one of ours.
const LINE: usize = 4_096;
/// Reads of 16 KiB from the task's output in one turn: a pipe holds 64 KiB, 1 MiB at the most that
/// a task could raise it to.
const READS: usize = 65;
/// How often a record that could not be written (a full disk) is tried again.
const RETRY_MS: u16 = 1_000;

/// The keeper of one task.
#[derive(Debug)]
pub(super) struct Shim {
    /// The task's first process.
    task: Pid,
    stage: Stage,
    /// How it ended; set once.
    exit: Option<Exit>,
    /// Why the command could not run.
    start_error: Option<String>,
    /// To the first process, until it runs the command.
    control: Option<OwnedFd>,
    /// From the task's standard output and error, until all that hold it are gone.
    pipe: Option<File>,
    output: Output,
    signals: SignalFd,
    listener: UnixListener,
    clients: VecDeque<Client>,
    /// Held for as long as the shim lives.
    _lock: File,
}

/// A connection of the daemon's.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// The line so far.
    line: Vec<u8>,
    /// Whether it is to hear of the task's end.
    waits: bool,
}

impl Shim {
    pub(super) fn new(
        task: Pid,
        control: OwnedFd,
        pipe: OwnedFd,
        listener: UnixListener,
        lock: File,
    ) -> io::Result<Self> {
        let mut wanted = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ] {
            wanted.add(signal);
        }
        wanted.thread_block()?;
        let signals =
            SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            task,
            stage: Stage::Created,
            exit: None,
            start_error: None,
            control: Some(control),
            pipe: Some(File::from(pipe)),
            output: Output::open(Path::new("."), LIMIT)?,
            signals,
            listener,
            clients: VecDeque::new(),
            _lock: lock,
        })
    }

    /// Serves until the task has ended and its end is recorded.
    pub(super) fn serve(&mut self) -> io::Result<()> {
        // A child that ended before its signal was blocked is found here.
        self.reap()?;
        loop {
            if self.exit.is_some() && self.record() {
                return Ok(());
            }
            self.wait_for_events()?;
            self.read_output();
            self.read_signals()?;
            self.accept();
            self.hear_clients();
        }
    }

    fn wait_for_events(&self) -> io::Result<()> {
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.pipe.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        let clients = self.clients.iter();
        fds.extend(clients.map(|client| PollFd::new(client.stream.as_fd(), PollFlags::POLLIN)));
        let timeout =
            if self.exit.is_some() { PollTimeout::from(RETRY_MS) } else { PollTimeout::NONE };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Moves what the task wrote to its file: at most a pipe's content, so that a task that never
    /// stops writing does not keep the daemon waiting.
    fn read_output(&mut self) {
        let mut buffer = [0; 16 << 10];
        for _ in 0..READS {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.output.append(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn read_signals(&mut self) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => self.reap()?,
                // Whoever signals the shim means the task.
                Ok(signal) => self.signal(signal),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if self.exit.is_none() {
            // It can only be gone already, and then SIGCHLD is on its way.
            let _ = kill(self.task, signal);
        }
    }

    /// Looks whether the task has ended.
    fn reap(&mut self) -> io::Result<()> {
        if self.exit.is_some() {
            return Ok(());
        }
        let (code, signal) = match waitpid(self.task, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => (code, None),
            Ok(WaitStatus::Signaled(_, signal, _)) => (128 + signal as i32, Some(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // All other processes of the namespace are gone with it: what they wrote is in the pipe.
        self.read_output();
        let at_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let at_ns = u64::try_from(at_ns).unwrap_or(u64::MAX);
        self.stage = Stage::Exited;
        self.exit = Some(Exit { code, signal, error: self.start_error.clone(), at_ns });
        Ok(())
    }

    /// Writes how the task ended, whole or not at all, and tells those who wait. `false` when the
    /// file cannot be written yet.
    fn record(&mut self) -> bool {
        let exit = serde_json::to_vec(&self.exit).expect("plain fields have a JSON form");
        let temporary = format!("{EXIT}.new");
        let written = fs::write(&temporary, exit).and_then(|()| fs::rename(&temporary, EXIT));
        let reply = self.reply(None);
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            client.waits = false;
            client.answer(&reply);
        }
        if let Err(error) = &written {
            eprintln!("cannot record the task's end: {error}");
            return false;
        }
        // Who connects from now on reads the record.
        let _ = remove_stale(SOCKET.as_ref());
        true
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() == CLIENTS {
                self.clients.pop_front();
            }
            self.clients.push_back(Client { stream, line: Vec::new(), waits: false });
        }
    }

    fn hear_clients(&mut self) {
        for _ in 0..self.clients.len() {
            let Some(mut client) = self.clients.pop_front() else { return };
            if self.hear(&mut client) {
                self.clients.push_back(client);
            }
        }
    }

    /// Serves what one client sent. `false` when it is gone.
    fn hear(&mut self, client: &mut Client) -> bool {
        let open = client.fill();
        while let Some(line) = client.next_line() {
            match serde_json::from_slice(&line) {
                Ok(Request::Wait) => client.waits = true,
                Ok(Request::Status) => client.answer(&self.reply(None)),
                Ok(Request::Start) => {
                    let error = self.start();
                    client.answer(&self.reply(error));
                }
                Ok(Request::Signal { number }) => {
                    let error = match Signal::try_from(number) {
                        Ok(signal) => {
                            self.signal(signal);
                            None
                        }
                        Err(_) => Some(format!("there is no signal {number}")),
                    };
                    client.answer(&self.reply(error));
                }
                Err(error) => client.answer(&self.reply(Some(error.to_string()))),
            }
        }
        open
    }

    fn reply(&self, error: Option<String>) -> Reply {
        Reply { stage: self.stage, pid: self.task.as_raw(), error, exit: self.exit.clone() }
    }

    /// Runs the command; what comes back is why it could not. A second call is no error.
    fn start(&mut self) -> Option<String> {
        let Some(control) = self.control.take() else { return self.start_error.clone() };
        let started = write(&control, START).and_then(|_| {
            let mut word = [0; 4_096];
            let length = read(&control, &mut word)?;
            Ok(String::from_utf8_lossy(&word[..length]).into_owned())
        });
        match started {
            // The socket closed with the exec.
            Ok(error) if error.is_empty() => self.stage = Stage::Running,
            Ok(error) => self.start_error = Some(error),
            Err(errno) => {
                // It must not run after all, once it was said that it cannot.
                let _ = kill(self.task, Signal::SIGKILL);
                self.start_error = Some(format!("the task does not answer: {}", errno.desc()));
            }
        }
        self.start_error.clone()
    }
}

impl Client {
    /// Reads what is there. `false` when the other side is gone, or is not one of ours.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 1_024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => self.line.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            if self.line.len() > LINE {
                return false;
            }
        }
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.line.iter().position(|&byte| byte == b'\n')?;
        Some(self.line.drain(..=end).collect())
    }

    fn answer(&mut self, reply: &Reply) {
        let mut line = serde_json::to_vec(reply).expect("plain fields have a JSON form");
        line.push(b'\n');
        // A client that cannot take a line asks again or is gone.
        let _ = self.stream.write_all(&line);
    }
}
