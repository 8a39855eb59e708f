//! Hosts that are network namespaces of the test's own, each with a daemon.
//!
//! Everything made carries the test's process id and goes away with its `Hosts`, also when a check
//! fails; what a killed run left is taken away by the next one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sweep::{PREFIX, cgroup2, remove_cgroups, sweep};

const SHOAL: &str = env!("CARGO_BIN_EXE_shoal");
/// The namespace with the switch.
const SWITCH: char = 's';

/// Two namespaces on one link: `a` is a host, `b` a client or another host; or several on a switch.
pub struct Hosts {
    prefix: String,
    /// The hosts, and the switch if there is one.
    namespaces: Vec<char>,
    /// What a host's daemon has for `/etc/hosts`.
    names: Option<PathBuf>,
    pub dir: tempfile::TempDir,
    cgroup: Option<PathBuf>,
    daemons: Vec<(char, Child)>,
}

/// Whether the test can run here; says so when not.
pub fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the tool is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}

/// Asks again until the answer is good.
pub fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Hosts {
    pub fn new() -> Self {
        let hosts = Self::without_links(&['a', 'b']);
        let (a, b) = (hosts.netns('a'), hosts.netns('b'));
        let veth = ["type", "veth", "peer", "name", "eth0", "netns"];
        run("ip", &[&["-n", &a, "link", "add", "eth0"][..], &veth, &[&b]].concat());
        for (host, address) in [('a', "10.77.0.1/24"), ('b', "10.77.0.2/24")] {
            hosts.raise(host, address);
        }
        hosts
    }

    /// Hosts `a`, `b` and `c` on a switch, with the addresses 10.77.0.1, 2 and 3.
    pub fn three() -> Self {
        let hosts = Self::without_links(&['a', 'b', 'c', SWITCH]);
        let switch = hosts.netns(SWITCH);
        run("ip", &["-n", &switch, "link", "add", "br0", "up", "type", "bridge"]);
        for (host, address) in [('a', "10.77.0.1/24"), ('b', "10.77.0.2/24"), ('c', "10.77.0.3/24")]
        {
            let (netns, port) = (hosts.netns(host), format!("port-{host}"));
            let veth = ["type", "veth", "peer", "name", &port, "netns", &switch];
            run("ip", &[&["-n", &netns, "link", "add", "eth0"][..], &veth].concat());
            run("ip", &["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
            hosts.raise(host, address);
        }
        hosts
    }

    fn raise(&self, host: char, address: &str) {
        let netns = self.netns(host);
        run("ip", &["-n", &netns, "addr", "add", address, "dev", "eth0"]);
        run("ip", &["-n", &netns, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &netns, "link", "set", "lo", "up"]);
        // XDP would see checksums that a wire never carries.
        let net = format!("--net=/run/netns/{netns}");
        run("nsenter", &[&net, "ethtool", "-K", "eth0", "tx", "off", "gro", "off"]);
    }

    fn without_links(namespaces: &[char]) -> Self {
        sweep();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}x{count}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&format!("{prefix}.")).tempdir();
        let hosts = Self {
            cgroup: cgroup2().map(|mount| mount.join(&prefix)),
            dir: dir.expect("a temporary folder can be made"),
            daemons: Vec::new(),
            namespaces: namespaces.to_vec(),
            names: None,
            prefix,
        };
        for name in namespaces {
            run("ip", &["netns", "add", &hosts.netns(*name)]);
        }
        hosts
    }

    /// Gives a host another address, and no more the one that it had.
    pub fn move_to(&self, host: char, address: &str) {
        run("ip", &["-n", &self.netns(host), "addr", "flush", "dev", "eth0"]);
        run("ip", &["-n", &self.netns(host), "addr", "add", address, "dev", "eth0"]);
    }

    /// What names mean to daemons that start from now on; each has a mount namespace of its own.
    pub fn set_names(&mut self, text: &str) {
        let file = self.dir.path().join("hosts");
        std::fs::write(&file, text).expect("the folder is ours");
        self.names = Some(file);
    }

    pub fn netns(&self, host: char) -> String {
        format!("{}{host}", self.prefix)
    }

    pub fn state(&self, host: char) -> PathBuf {
        self.dir.path().join(host.to_string())
    }

    /// An image that holds this binary, and the binary's path in it.
    pub fn image(&self) -> (String, String) {
        let rootfs = self.dir.path().join("rootfs");
        shoal_tests::lab::tasks::image(Path::new(SHOAL), &rootfs).expect("an image can be made")
    }

    /// `shoal` inside a host's network, without this process's `SHOAL_*`.
    pub fn command(&self, host: char, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns(host))).arg(SHOAL).args(arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SHOAL_") {
                command.env_remove(name);
            }
        }
        command.env("SHOAL_SOCKET", self.state(host).join("shoal.sock"));
        command.env("SHOAL_STATE_DIR", self.state(host));
        command.env("SHOAL_PIN_DIR", self.state(host).join("bpf"));
        if let Some(cgroup) = &self.cgroup {
            command.env("SHOAL_CGROUP_ROOT", cgroup.join(host.to_string()));
        }
        command.env("SHOAL_NAME", host.to_string());
        command
    }

    pub fn start(&mut self, host: char) {
        self.start_with(host, &[]);
    }

    /// Starts a host's daemon with settings by the environment.
    pub fn start_with(&mut self, host: char, settings: &[(&str, &str)]) {
        let log = self.dir.path().join(format!("{host}.log"));
        let log = File::options().create(true).append(true).open(log).expect("the folder is ours");
        let mut command = self.command(host, &["daemon"]);
        if let Some(names) = &self.names {
            let shoal = command;
            command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts; exec \"$@\""]);
            command.arg(names).arg(shoal.get_program()).args(shoal.get_args());
            for (name, value) in shoal.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
        }
        command.envs(settings.iter().copied());
        let daemon = command.stdin(Stdio::null()).stderr(log).spawn().expect("nsenter is there");
        self.daemons.push((host, daemon));
        until("the daemon answers", || self.shoal(host, &["info"]).status.success().then_some(()));
    }

    /// Ends a host's daemon by a signal and gives its exit code.
    pub fn stop(&mut self, host: char, signal: Signal) -> Option<i32> {
        let index = self.daemons.iter().position(|(name, _)| *name == host);
        let (_, mut daemon) = self.daemons.swap_remove(index.expect("it was started"));
        let pid = Pid::from_raw(i32::try_from(daemon.id()).expect("a pid"));
        kill(pid, signal).expect("it runs");
        daemon.wait().expect("it is our child").code()
    }

    pub fn shoal(&self, host: char, arguments: &[&str]) -> Output {
        self.command(host, arguments).output().expect("nsenter is there")
    }

    /// Stdout of a command that must succeed.
    pub fn ok(&self, host: char, arguments: &[&str]) -> String {
        let output = self.shoal(host, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}\n{}", self.logs());
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Stderr of a command that must fail with 1.
    pub fn fails(&self, host: char, arguments: &[&str]) -> String {
        let output = self.shoal(host, arguments);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        stderr
    }

    pub fn info(&self, host: char) -> Value {
        serde_json::from_str(&self.ok(host, &["info", "--format", "json"])).expect("JSON")
    }

    pub fn lines(&self, host: char, arguments: &[&str]) -> Vec<Value> {
        let text = self.ok(host, arguments);
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// `shoal` with a text on its stdin.
    pub fn tell(&self, host: char, arguments: &[&str], text: &str) -> Output {
        let mut command = self.command(host, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nsenter is there");
        let mut stdin = child.stdin.take().expect("it is piped");
        // One that fails early does not read it.
        let _ = stdin.write_all(text.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it is our child")
    }

    /// What `shoal join` wants.
    pub fn token(&self, host: char, role: &str) -> String {
        self.ok(host, &["join-token", "-q", role]).trim().to_owned()
    }

    /// Three hosts of one cluster, all managers; `names` is what they join by.
    pub fn managers(names: &str) -> Self {
        let mut hosts = Self::three();
        for host in ['a', 'b', 'c'] {
            hosts.start(host);
        }
        hosts.ok('a', &["init"]);
        let token = hosts.token('a', "manager");
        for host in ['b', 'c'] {
            hosts.ok(host, &["join", "--token", &token, names]);
        }
        hosts.until_ready(3);
        hosts.until_managers('a', 3);
        hosts
    }

    /// Waits until that many managers lead or are reached, by one of them.
    pub fn until_managers(&self, host: char, count: usize) {
        until(&format!("{count} managers take part by {host}"), || {
            let output = self.shoal(host, &["node", "ls", "--format", "json"]);
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            let part = |line: &&str| line.contains("\"Leader\"") || line.contains("\"Reachable\"");
            (text.lines().filter(part).count() == count).then_some(())
        });
    }

    /// Two hosts of one cluster: `a` its manager, `b` as said.
    pub fn pair(role: &str) -> Self {
        let mut hosts = Self::new();
        hosts.start('a');
        hosts.start('b');
        hosts.ok('a', &["init"]);
        let token = hosts.token('a', role);
        let joined = hosts.ok('b', &["join", "--token", &token, "10.77.0.1"]);
        assert_eq!(joined, format!("This node joined a swarm as a {role}.\n"));
        hosts.until_ready(2);
        hosts
    }

    pub fn nodes(&self, host: char) -> Vec<Value> {
        self.lines(host, &["node", "ls", "--format", "json"])
    }

    /// Waits until that many nodes are ready, by `a`.
    pub fn until_ready(&self, count: usize) {
        until("the nodes are ready", || {
            let output = self.shoal('a', &["node", "ls", "--format", "json"]);
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            let ready = |line: &&str| line.contains("\"Ready\"");
            (text.lines().filter(ready).count() == count).then_some(())
        });
    }

    /// This node's half of `shoal info`.
    pub fn swarm(&self, host: char) -> Value {
        self.info(host)["Swarm"].clone()
    }

    pub fn is(&self, host: char, state: &str) -> bool {
        self.swarm(host)["LocalNodeState"] == state
    }

    /// A node that is in no cluster has nothing of one, on the disk or in the kernel.
    pub fn assert_untouched(&self, host: char) {
        assert_eq!(self.swarm(host)["LocalNodeState"], "inactive");
        for name in ["node.json", "certificates", "raft", "managers.json"] {
            assert!(!self.state(host).join(name).exists(), "{name} is left");
        }
        let links = Command::new("ip").args(["-n", &self.netns(host), "-o", "link"]).output();
        let links = String::from_utf8(links.expect("ip is there").stdout).expect("UTF-8");
        for trace in ["vxlan", "shoal", "xdp"] {
            assert!(!links.contains(trace), "{trace} in {links}");
        }
    }

    /// A service that answers on port 8080 of every node.
    pub fn serve_web(&self, replicas: &str) {
        let (image, shoal) = self.image();
        let web = ["service", "create", "--name", "web", "--replicas", replicas, "-p", "8080:80"];
        self.ok('a', &[&web[..], &[&image, &shoal, "responder"]].concat());
    }

    /// Running tasks of `web`, as a manager tells them.
    pub fn tasks(&self, host: char) -> Vec<Value> {
        let output = self.shoal(host, &["service", "ps", "web", "--format", "json"]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let tasks = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        tasks.filter(|task| task["State"] == "running").collect()
    }

    /// Asks `GET /` of an address from inside a host.
    pub fn get(&self, host: char, address: &str) -> std::io::Result<Value> {
        let netns = File::open(format!("/run/netns/{}", self.netns(host)))?;
        let address: SocketAddr = address.parse().expect("an address");
        let client = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            let limit = Duration::from_secs(2);
            let mut stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
            serde_json::from_str(body).map_err(std::io::Error::from)
        });
        client.join().expect("the client does not panic")
    }

    pub fn logs(&self) -> String {
        let log = |host: &char| {
            let text = std::fs::read_to_string(self.dir.path().join(format!("{host}.log")));
            text.map(|text| format!("--- {host}\n{text}")).unwrap_or_default()
        };
        self.namespaces.iter().map(log).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for (_, daemon) in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for &host in &self.namespaces {
            if let Some(cgroup) = &self.cgroup {
                remove_cgroups(&cgroup.join(host.to_string()));
            }
            let _ = nix::mount::umount(&self.state(host).join("bpf"));
            let _ = Command::new("ip").args(["netns", "del", &self.netns(host)]).status();
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = std::fs::remove_dir(cgroup);
        }
    }
}
