//! The daemon from outside, on hosts that are network namespaces of the test's own.
//!
//! Needs root and a kernel with XDP and tcx or clsact; without root each test says that it was
//! skipped. Everything made carries the test's process id and goes away with its `Hosts`, also when
//! a check fails.

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

const SHOAL: &str = env!("CARGO_BIN_EXE_shoal");
/// Begins every name that these tests give in the kernel; the process's id follows.
const PREFIX: &str = "shn";

/// Two namespaces on one link: `a` is a host, `b` a client or another host.
struct Hosts {
    prefix: String,
    dir: tempfile::TempDir,
    cgroup: Option<PathBuf>,
    daemons: Vec<(char, Child)>,
}

/// Whether the test can run here; says so when not.
fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the tool is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}

/// Asks again until the answer is good.
fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
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
    fn new() -> Self {
        sweep();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}x{count}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&format!("{prefix}.")).tempdir();
        let hosts = Self {
            cgroup: cgroup2().map(|mount| mount.join(&prefix)),
            dir: dir.expect("a temporary folder can be made"),
            daemons: Vec::new(),
            prefix,
        };
        let (a, b) = (hosts.netns('a'), hosts.netns('b'));
        run("ip", &["netns", "add", &a]);
        run("ip", &["netns", "add", &b]);
        let veth = ["type", "veth", "peer", "name", "eth0", "netns"];
        run("ip", &[&["-n", &a, "link", "add", "eth0"][..], &veth, &[&b]].concat());
        for (netns, address) in [(&a, "10.77.0.1/24"), (&b, "10.77.0.2/24")] {
            run("ip", &["-n", netns, "addr", "add", address, "dev", "eth0"]);
            run("ip", &["-n", netns, "link", "set", "eth0", "up"]);
            run("ip", &["-n", netns, "link", "set", "lo", "up"]);
            // XDP would see checksums that a wire never carries.
            let net = format!("--net=/run/netns/{netns}");
            run("nsenter", &[&net, "ethtool", "-K", "eth0", "tx", "off", "gro", "off"]);
        }
        hosts
    }

    fn netns(&self, host: char) -> String {
        format!("{}{host}", self.prefix)
    }

    fn state(&self, host: char) -> PathBuf {
        self.dir.path().join(host.to_string())
    }

    /// An image that holds this binary, and the binary's path in it.
    fn image(&self) -> (String, String) {
        let rootfs = self.dir.path().join("rootfs");
        shoal_tests::lab::tasks::image(Path::new(SHOAL), &rootfs).expect("an image can be made")
    }

    /// `shoal` inside a host's network, without this process's `SHOAL_*`.
    fn command(&self, host: char, arguments: &[&str]) -> Command {
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

    fn start(&mut self, host: char) {
        let log = self.dir.path().join(format!("{host}.log"));
        let log = File::options().create(true).append(true).open(log).expect("the folder is ours");
        let mut command = self.command(host, &["daemon"]);
        let daemon = command.stdin(Stdio::null()).stderr(log).spawn().expect("nsenter is there");
        self.daemons.push((host, daemon));
        until("the daemon answers", || self.shoal(host, &["info"]).status.success().then_some(()));
    }

    /// Ends a host's daemon by a signal and gives its exit code.
    fn stop(&mut self, host: char, signal: Signal) -> Option<i32> {
        let index = self.daemons.iter().position(|(name, _)| *name == host);
        let (_, mut daemon) = self.daemons.swap_remove(index.expect("it was started"));
        let pid = Pid::from_raw(i32::try_from(daemon.id()).expect("a pid"));
        kill(pid, signal).expect("it runs");
        daemon.wait().expect("it is our child").code()
    }

    fn shoal(&self, host: char, arguments: &[&str]) -> Output {
        self.command(host, arguments).output().expect("nsenter is there")
    }

    /// Stdout of a command that must succeed.
    fn ok(&self, host: char, arguments: &[&str]) -> String {
        let output = self.shoal(host, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}\n{}", self.logs());
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Stderr of a command that must fail with 1.
    fn fails(&self, host: char, arguments: &[&str]) -> String {
        let output = self.shoal(host, arguments);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        stderr
    }

    fn info(&self, host: char) -> Value {
        serde_json::from_str(&self.ok(host, &["info", "--format", "json"])).expect("JSON")
    }

    fn lines(&self, host: char, arguments: &[&str]) -> Vec<Value> {
        let text = self.ok(host, arguments);
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Asks `GET /` of an address from inside a host.
    fn get(&self, host: char, address: &str) -> std::io::Result<Value> {
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

    fn logs(&self) -> String {
        let log = |host| std::fs::read_to_string(self.dir.path().join(host)).unwrap_or_default();
        format!("--- a\n{}--- b\n{}", log("a.log"), log("b.log"))
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
        for host in ['a', 'b'] {
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

/// Where cgroup version 2 is mounted.
fn cgroup2() -> Option<PathBuf> {
    mounts().find(|(_, kind)| kind == "cgroup2").map(|(mount, _)| mount)
}

/// Every mount of this machine and its kind.
fn mounts() -> impl Iterator<Item = (PathBuf, String)> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some((PathBuf::from(fields.next()?), fields.next()?.to_owned()))
    };
    mounts.lines().filter_map(parse).collect::<Vec<_>>().into_iter()
}

/// Whether a name is one that a run of these tests gave and that run is gone.
fn is_left_over(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('x'));
    pid.and_then(|(pid, _)| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Takes away what a run that was killed, as by a time-out, could not.
fn sweep() {
    let entries = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| is_left_over(&entry.file_name().to_string_lossy()))
    };
    let networks: Vec<_> =
        entries(Path::new("/run/netns")).map(|entry| entry.file_name()).collect();
    for network in &networks {
        let pids = Command::new("ip").args(["netns", "pids"]).arg(network).output();
        let pids = pids.map(|output| output.stdout).unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).split_whitespace() {
            let _ = kill(Pid::from_raw(pid.parse().expect("a pid")), Signal::SIGKILL);
        }
    }
    for entry in cgroup2().iter().flat_map(|mount| entries(mount)) {
        remove_cgroups(&entry.path());
    }
    let temporary = std::env::temp_dir();
    for (mount, _) in mounts() {
        let below = mount.strip_prefix(&temporary).ok();
        let first = below.and_then(|path| path.components().next());
        if first.is_some_and(|name| is_left_over(&name.as_os_str().to_string_lossy())) {
            let _ = nix::mount::umount(&mount);
        }
    }
    for entry in entries(&temporary) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
    for network in &networks {
        let _ = Command::new("ip").args(["netns", "del"]).arg(network).status();
    }
}

/// Kills what is left in a cgroup and removes it with those below it.
fn remove_cgroups(root: &Path) {
    let Ok(entries) = std::fs::read_dir(root) else { return };
    let _ = std::fs::write(root.join("cgroup.kill"), "1");
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    // The kernel lets go of a cgroup a moment after its last process.
    let start = Instant::now();
    while std::fs::remove_dir(root).is_err() && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_service_is_served_scaled_and_removed_and_outlives_its_daemon() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    let refusal = hosts.fails('a', &["service", "ls"]);
    assert!(refusal.contains("Use \"shoal init\""), "{refusal}");
    let init = hosts.ok('a', &["init"]);
    assert!(init.contains("is now a manager."), "{init}");
    assert!(init.contains("shoal join --role manager 10.77.0.1:2377"), "{init}");
    assert!(hosts.fails('a', &["init"]).contains("already part of a swarm"));

    let web = ["service", "create", "--name", "web", "--replicas", "3", "-p", "8080:80"];
    let (image, shoal) = hosts.image();
    let created = hosts.shoal('a', &[&web[..], &[&image, &shoal, "responder"]].concat());
    let stderr = String::from_utf8_lossy(&created.stderr);
    assert!(created.status.success(), "{stderr}\n{}", hosts.logs());
    assert!(stderr.ends_with("verify: Service converged\n"), "{stderr}");
    assert_eq!(created.stdout.trim_ascii().len(), 25, "stdout holds the id alone");

    // From the first answer on: that is what converged means.
    let mut tasks = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let answer = hosts.get('b', "10.77.0.1:8080").expect("the service is there");
        assert!(answer["client"].as_str().unwrap().starts_with("10.77.0.2:"), "{answer}");
        assert_eq!(answer["node"], "a");
        tasks.insert(answer["task"].as_str().unwrap().to_owned());
    }
    assert!(tasks.len() > 1, "one task answered everything: {tasks:?}");

    let clash = ["service", "create", "--name", "two", "-p", "8080:81", "rootfs:/", "sleep", "1"];
    let clash = hosts.fails('a', &clash);
    assert!(clash.contains("port '8080' is already in use by service 'web'"), "{clash}");
    let missing = hosts.fails('a', &["service", "create", "--name", "x", "rootfs:/gone", "x"]);
    let expected = "service x was not created, since none of its tasks can run: \
                    No such image: rootfs:/gone\n";
    assert!(missing.ends_with(expected), "{missing}");
    until("only web is left", || {
        let services = hosts.lines('a', &["service", "ls", "--format", "json"]);
        (services.len() == 1).then_some(())
    });

    assert_eq!(hosts.ok('a', &["service", "scale", "web=1"]), "web scaled to 1\n");
    let running = |hosts: &Hosts| {
        let tasks = hosts.lines('a', &["service", "ps", "web", "--format", "json"]);
        tasks.into_iter().filter(|task| task["State"] == "running").collect::<Vec<_>>()
    };
    let before = until("two tasks have ended", || Some(running(&hosts)).filter(|t| t.len() == 1));
    for _ in 0..5 {
        assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1");
    }

    hosts.stop('a', Signal::SIGKILL);
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1", "without a daemon");
    hosts.start('a');
    let after = until("the manager leads again", || {
        let list = hosts.shoal('a', &["service", "ps", "web"]);
        list.status.success().then(|| running(&hosts))
    });
    assert_eq!(after.len(), 1);
    assert_eq!(after[0]["FullID"], before[0]["FullID"], "the task was taken over");
    assert_eq!(after[0]["PID"], before[0]["PID"]);
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1");

    assert_eq!(hosts.stop('a', Signal::SIGTERM), Some(0));
    assert!(!hosts.state('a').join("shoal.sock").exists());
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1", "after an orderly end");
    hosts.start('a');
    assert_eq!(hosts.ok('a', &["service", "rm", "web"]), "web\n");
    until("nobody answers", || hosts.get('b', "10.77.0.1:8080").is_err().then_some(()));
}

#[test]
fn a_worker_joins_comes_back_and_says_what_it_is_not() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    hosts.start('b');
    hosts.ok('a', &["init"]);
    assert_eq!(hosts.ok('b', &["join", "10.77.0.1"]), "This node joined a swarm as a worker.\n");
    let refusal = hosts.fails('b', &["node", "ls"]);
    assert!(refusal.contains("Worker nodes can't be used to view or modify"), "{refusal}");
    let ready = |hosts: &Hosts| {
        let nodes = hosts.lines('a', &["node", "ls", "--format", "json"]);
        nodes.iter().filter(|node| node["Status"] == "Ready").count() == 2
    };
    until("both nodes are ready", || ready(&hosts).then_some(()));

    // A task on each host, and each host answers for both.
    let web = ["service", "create", "--name", "web", "--replicas", "2", "-p", "8080:80"];
    let (image, shoal) = hosts.image();
    hosts.ok('a', &[&web[..], &[&image, &shoal, "responder"]].concat());
    let nodes = |client, address: &str| {
        let answers = (0..30).map(|_| hosts.get(client, address).expect("the service is there"));
        let nodes = answers.map(|answer| answer["node"].as_str().unwrap().to_owned());
        nodes.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(nodes('b', "10.77.0.1:8080"), 2);
    assert_eq!(nodes('a', "10.77.0.2:8080"), 2);

    let id = hosts.info('b')["Swarm"]["NodeID"].clone();
    hosts.stop('b', Signal::SIGKILL);
    hosts.start('b');
    assert_eq!(hosts.info('b')["Swarm"]["NodeID"], id);
    assert_eq!(hosts.info('b')["Swarm"]["LocalNodeState"], "active");
    until("its kernel holds what the managers want", || {
        let held = |host| hosts.info(host)["HeldIndex"].as_u64().unwrap_or(0);
        (held('b') > 0 && held('b') >= held('a')).then_some(())
    });
    until("both nodes are ready", || ready(&hosts).then_some(()));
}

#[test]
fn what_cannot_be_done_is_one_sentence_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    let second = hosts.fails('a', &["daemon"]);
    assert!(second.contains("is in use by another shoal daemon"), "{second}");
    let other = hosts.dir.path().join("other");
    let other = ["daemon", "--state-dir", other.to_str().unwrap()];
    let second = hosts.fails('a', &other);
    assert!(second.contains("another daemon answers at unix://"), "{second}");

    let inactive = |hosts: &Hosts| {
        assert_eq!(hosts.info('a')["Swarm"]["LocalNodeState"], "inactive");
        assert!(!hosts.state('a').join("node.json").exists());
        let links = Command::new("ip").args(["-n", &hosts.netns('a'), "-o", "link"]).output();
        let links = String::from_utf8(links.unwrap().stdout).unwrap();
        assert!(!links.contains("vxlan") && !links.contains("shoal") && !links.contains("xdp"));
    };
    let nobody = hosts.fails('a', &["join", "--role", "manager", "10.77.0.1:1"]);
    let expected = "Error response from daemon: no manager answered: 10.77.0.1:1: \
                    Connection refused (os error 111)\n";
    assert_eq!(nobody, expected);
    inactive(&hosts);
    let wrong = hosts.fails('a', &["init", "--advertise-addr", "eth9"]);
    assert!(wrong.contains("interface eth9 has no IP address"), "{wrong}");
    inactive(&hosts);
    let foreign = hosts.fails('a', &["init", "--advertise-addr", "10.99.0.1"]);
    assert!(foreign.contains("10.99.0.1"), "{foreign}");
    inactive(&hosts);
    // And then it works.
    hosts.ok('a', &["init"]);
    assert_eq!(hosts.info('a')["Swarm"]["LocalNodeState"], "active");
}
