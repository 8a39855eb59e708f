//! The daemons of a lab: start, kill, and the way from hosts to a cluster.
//!
//! Each daemon runs in its host's network namespace and in the cgroup `<prefix>-n<i>/daemon`, so
//! that ending the subtree `<prefix>-n<i>` ends it with its shims and tasks. It is detached: it
//! outlives whoever started it, as a real host's daemon does.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use super::{Lab, checked, sweep::is_alive, wait_for};

/// Port of the managers' services on each host.
pub const MANAGER_PORT: u16 = 2377;
/// How long a daemon may take until it answers on its socket.
const START_DEADLINE: Duration = Duration::from_secs(15);

impl Lab {
    /// The unix socket of a host's daemon.
    pub fn socket(&self, host: &str) -> PathBuf {
        self.host_dir(host).join("shoal.sock")
    }

    /// The log of a host's daemon, appended to by every start.
    pub fn log(&self, host: &str) -> PathBuf {
        self.host_dir(host).join("daemon.log")
    }

    /// The cgroup subtree of a host, if the machine has cgroups of version 2.
    pub fn cgroup(&self, host: &str) -> Option<PathBuf> {
        cgroup_mount().map(|mount| mount.join(self.netns_name(host)))
    }

    /// Starts a host's daemon and waits until it answers on its socket.
    ///
    /// # Errors
    /// There is no `shoal` binary, the daemon runs already, or it ends before it answers; the text
    /// then holds the end of its log.
    pub fn start(&self, host: &str) -> Result<()> {
        self.check_host(host)?;
        if let Some(pid) = self.daemon_pid(host) {
            bail!("the daemon of {host} runs already as process {pid}");
        }
        ensure!(self.shoal.exists(), "no {}: `cargo xtask build` makes it", self.shoal.display());
        let log = OpenOptions::new().create(true).append(true).open(self.log(host))?;
        let mut command = self.daemon_command(host);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = self
            .inside(host, || command.spawn())?
            .with_context(|| format!("cannot start the daemon of {host}"))?;
        let pid = i32::try_from(child.id()).context("a process id is an int")?;
        fs::write(self.pid_file(host), format!("{pid}\n"))?;
        // Whoever starts a daemon must also reap it, or it stays a zombie once it is killed.
        let ended = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&ended);
        std::thread::spawn(move || {
            let _ = child.wait();
            mark.store(true, Ordering::Relaxed);
        });
        wait_for(&format!("the daemon of {host} to answer"), START_DEADLINE, || {
            let connected = UnixStream::connect(self.socket(host));
            if connected.is_err() && ended.load(Ordering::Relaxed) {
                return Ok(Err(anyhow::anyhow!("the daemon of {host} ended before it answered")));
            }
            // A killed daemon's socket may take connections until its last thread is gone.
            let listener = getsockopt(&connected?, PeerCredentials)?.pid();
            ensure!(listener == pid, "process {listener} answers, not {pid}");
            Ok(Ok(()))
        })
        .and_then(|answered| answered)
        .map_err(|error| anyhow::anyhow!("{error:#}; {}", self.log_tail(host)))
    }

    /// Kills a host's daemon as a crash would; its tasks live on.
    ///
    /// # Errors
    /// No daemon runs there.
    pub fn kill(&self, host: &str) -> Result<()> {
        self.check_host(host)?;
        let pid = self.daemon_pid(host).with_context(|| format!("no daemon runs on {host}"))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        wait_for("the daemon to end", Duration::from_secs(5), || {
            ensure!(!is_alive(pid), "process {pid} still runs");
            Ok(())
        })
    }

    /// Kills a whole host: its link goes and so does every process on it.
    ///
    /// # Errors
    /// The lab is not up, or a process does not end.
    pub fn kill_host(&self, host: &str) -> Result<()> {
        self.cut(host)?;
        let cgroup = self.cgroup(host).context("needs cgroups of version 2")?;
        fs::write(cgroup.join("cgroup.kill"), "1")
            .with_context(|| format!("cannot kill {}", cgroup.display()))?;
        wait_for(&format!("the processes of {host} to end"), Duration::from_secs(5), || {
            let left = processes(&cgroup);
            ensure!(left.iter().all(|pid| !is_alive(*pid)), "still running: {left:?}");
            Ok(())
        })
    }

    /// The process of a host's daemon while it runs.
    pub fn daemon_pid(&self, host: &str) -> Option<i32> {
        let pid: i32 = fs::read_to_string(self.pid_file(host)).ok()?.trim().parse().ok()?;
        // Process ids are used again, so the command line must be this host's daemon.
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let socket = self.socket(host);
        let socket = socket.as_os_str().as_encoded_bytes();
        let ours = cmdline.split(|byte| *byte == 0).any(|arg| arg == socket);
        (ours && is_alive(pid)).then_some(pid)
    }

    /// Starts every daemon and makes one cluster of them, all of them managers.
    ///
    /// # Errors
    /// A daemon does not start or a step of the cluster's making fails.
    pub fn form(&self) -> Result<()> {
        self.form_with(self.nodes, 0)
    }

    /// Starts the daemons of the first `managers + workers` hosts and makes one cluster of them;
    /// `n1` begins it.
    ///
    /// # Errors
    /// A daemon does not start or a step of the cluster's making fails.
    pub fn form_with(&self, managers: usize, workers: usize) -> Result<()> {
        let hosts = self.nodes();
        ensure!(
            managers > 0 && managers + workers <= hosts.len(),
            "{managers} managers and {workers} workers do not fit on {} hosts",
            hosts.len()
        );
        let hosts = &hosts[..managers + workers];
        std::thread::scope(|scope| {
            let starts: Vec<_> =
                hosts.iter().map(|host| scope.spawn(move || self.start(host))).collect();
            starts.into_iter().try_for_each(|start| {
                start.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        self.shoal(&hosts[0], &["init"])?;
        for (number, host) in hosts.iter().enumerate().skip(1) {
            self.join(host, if number < managers { "manager" } else { "worker" })?;
        }
        wait_for("all nodes to be ready", Duration::from_secs(20), || {
            let listed = self.shoal_json(&hosts[0], &["node", "ls", "--format", "json"])?;
            let ready = listed.iter().filter(|node| node["Status"] == "Ready").count();
            ensure!(ready == hosts.len(), "{ready} of {} nodes are ready", hosts.len());
            Ok(())
        })
    }

    /// The token that lets a host in as `worker` or `manager`, from any manager that answers.
    ///
    /// # Errors
    /// None answers.
    pub fn token(&self, role: &str) -> Result<String> {
        let mut last = None;
        for host in self.nodes() {
            match self.shoal(&host, &["join-token", "--quiet", role]) {
                Ok(token) => return Ok(token.trim().to_owned()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("a lab has hosts")?)
    }

    /// Makes a host, whose daemon runs, a member; any other host may be the manager it asks.
    ///
    /// # Errors
    /// It is refused.
    pub fn join(&self, host: &str, role: &str) -> Result<()> {
        let token = self.token(role)?;
        let others = self.nodes().into_iter().filter(|other| other != host);
        let addrs: Vec<String> =
            others.map(|other| format!("{}:{MANAGER_PORT}", self.addr(&other))).collect();
        let mut args = vec!["join", "--token", &token];
        args.extend(addrs.iter().map(String::as_str));
        self.shoal(host, &args).map(drop)
    }

    /// Runs the CLI against a host's daemon and gives what it printed.
    ///
    /// # Errors
    /// The command fails; the text holds its stderr.
    pub fn shoal(&self, host: &str, args: &[&str]) -> Result<String> {
        checked(&format!("shoal {} (on {host})", args.join(" ")), &self.shoal_output(host, args)?)
    }

    /// Runs the CLI against a host's daemon and keeps exit code and output.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn shoal_output(&self, host: &str, args: &[&str]) -> Result<Output> {
        Command::new(&self.shoal)
            .arg("--socket")
            .arg(self.socket(host))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.shoal.display()))
    }

    /// Runs the CLI with text at its standard input.
    ///
    /// # Errors
    /// The command fails; the text holds its stderr.
    pub fn shoal_with_input(&self, host: &str, args: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.shoal)
            .arg("--socket")
            .arg(self.socket(host))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.shoal.display()))?;
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        // A command that needs no input may have ended already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let what = format!("shoal {} (on {host})", args.join(" "));
        checked(&what, &child.wait_with_output()?)
    }

    /// Runs the CLI with `--format json` among its arguments: one value per line.
    ///
    /// # Errors
    /// The command fails or prints something that is not JSON.
    pub fn shoal_json(&self, host: &str, args: &[&str]) -> Result<Vec<serde_json::Value>> {
        let text = self.shoal(host, args)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// The last lines of a daemon's log, for error messages.
    pub fn log_tail(&self, host: &str) -> String {
        let text = fs::read_to_string(self.log(host)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n  ");
        format!("the end of {}:\n  {tail}", self.log(host).display())
    }

    fn pid_file(&self, host: &str) -> PathBuf {
        self.host_dir(host).join("daemon.pid")
    }

    /// The shell puts itself into the host's cgroup, then becomes the daemon: one process.
    fn daemon_command(&self, host: &str) -> Command {
        let dir = self.host_dir(host);
        let addr = self.addr(host).to_string();
        let mut command = Command::new("sh");
        command.arg("-c").arg("[ -z \"$1\" ] || echo $$ >\"$1\"; shift; exec setsid \"$@\"");
        command.arg("sh");
        let cgroup = self.cgroup(host);
        match &cgroup {
            Some(cgroup) => command.arg(cgroup.join("daemon/cgroup.procs")),
            None => command.arg(""),
        };
        command.arg(&self.shoal).arg("daemon");
        command.arg("--socket").arg(self.socket(host));
        command.arg("--state-dir").arg(dir.join("state"));
        command.arg("--pin-dir").arg(dir.join("bpf"));
        if let Some(cgroup) = cgroup {
            command.arg("--cgroup-root").arg(cgroup);
        }
        command.args(["--listen-addr", &format!("{addr}:{MANAGER_PORT}")]);
        command.args(["--advertise-addr", &addr, "--data-path-addr", &addr]);
        command.args(["--uplink", "eth0", "--name", host]);
        // The switch has XDP at the far end of each uplink, which no daemon could know of a veth.
        command.env("SHOAL_XDP", std::env::var_os("SHOAL_XDP").unwrap_or_else(|| "native".into()));
        command
    }
}

/// Makes the cgroup subtrees of a lab's hosts.
pub(super) fn make_cgroups(lab: &Lab) -> Result<()> {
    for host in lab.nodes() {
        if let Some(cgroup) = lab.cgroup(&host) {
            let leaf = cgroup.join("daemon");
            fs::create_dir_all(&leaf)
                .with_context(|| format!("cannot make the cgroup {}", leaf.display()))?;
        }
    }
    Ok(())
}

/// Where cgroups of version 2 are mounted.
pub fn cgroup_mount() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").ok()?;
    table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
}

/// Every process of a cgroup and of those below it.
pub fn processes(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}
