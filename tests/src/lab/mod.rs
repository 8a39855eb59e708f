//! A lab: hosts as network namespaces on one switch, each with its own daemon, and a client.
//!
//! Host `n<i>` has `10.88.0.<i>/24` and `fd88::<i>/64`, the client ends in 100. Everything that a
//! lab makes in the kernel carries its prefix, so several labs live side by side, and everything
//! can be found again by that prefix: [`Lab::down`] needs no memory of what was made and works
//! after a crash at any moment.
//!
//! * [`net`] makes namespaces, links and the switch; [`wire`] makes the links behave as a wire.
//! * [`daemon`] starts and kills the daemons and forms the cluster.
//! * [`sweep`] takes everything away; [`registry`] knows which labs exist and who owns them.
//! * [`capture`] listens on the switch.
//! * [`http`] and [`asker`] are the client's side, [`tasks`] finds a host's tasks; [`plain`] makes
//!   a task without Shoal, to compare with.

pub mod asker;
pub mod capture;
pub mod daemon;
pub mod http;
pub mod net;
pub mod plain;
pub mod registry;
pub mod sweep;
pub mod tasks;
pub mod wire;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::Flock;

/// Prefix of the lab that a user brings up by hand.
pub const DEFAULT_PREFIX: &str = "shoal";
/// Where `ip netns` keeps named namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// The client's name among the hosts.
pub const CLIENT: &str = "client";
/// The client's address, which every task must see.
pub const CLIENT_ADDR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 100);
/// Hosts a lab can have: their addresses must stay below the client's.
pub const NODES_MAX: usize = 64;

/// The switch's name; it is not a host, but it has a namespace and state like one.
const SWITCH: &str = "sw";

/// Hosts on one switch, by prefix.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    root: PathBuf,
    dir: PathBuf,
    nodes: usize,
    shoal: PathBuf,
    /// Held by labs that end with their process; `None` for a user's lab, which stays.
    owner: Option<Flock<File>>,
}

impl Lab {
    /// Names a lab of `nodes` hosts under the workspace at `root`; touches nothing yet.
    ///
    /// # Errors
    /// A prefix or number of hosts that no lab can have.
    pub fn new(root: &Path, prefix: &str, nodes: usize) -> Result<Self> {
        let named = prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        ensure!(
            named && (1..=11).contains(&prefix.len()),
            "a lab's prefix is 1 to 11 lower case letters and digits, not {prefix:?}"
        );
        ensure!(
            (1..=NODES_MAX).contains(&nodes),
            "a lab has 1 to {NODES_MAX} hosts, not {nodes}: ask for fewer with --nodes"
        );
        let folder = match prefix {
            DEFAULT_PREFIX => "lab".to_owned(),
            other => format!("lab-{other}"),
        };
        Ok(Self {
            prefix: prefix.to_owned(),
            root: root.to_owned(),
            dir: root.join("target").join(folder),
            nodes,
            shoal: root.join("target/debug/shoal"),
            owner: None,
        })
    }

    /// The lab that is up under this prefix.
    ///
    /// # Errors
    /// None is up.
    pub fn open(root: &Path, prefix: &str) -> Result<Self> {
        let mut lab = Self::new(root, prefix, 1)?;
        lab.nodes = (1..=NODES_MAX).take_while(|i| lab.netns(&format!("n{i}")).exists()).count();
        ensure!(
            lab.nodes > 0,
            "no lab is up{}: start one with `cargo xtask lab up`",
            if prefix == DEFAULT_PREFIX { String::new() } else { format!(" as {prefix:?}") }
        );
        Ok(lab)
    }

    /// Makes the hosts of a lab that ends with this value, for tests, demo and benchmarks.
    ///
    /// # Errors
    /// Another lab has the prefix, or the kernel refuses something; nothing is left behind then.
    pub fn owned(root: &Path, prefix: &str, nodes: usize) -> Result<Self> {
        let lab = Self::claim(root, prefix, nodes)?;
        lab.sweep().context("cannot take away what an earlier lab of this name left")?;
        registry::add(&lab)?;
        lab.build()?;
        Ok(lab)
    }

    /// Owns a prefix without making anything: what an earlier owner left goes with this value.
    ///
    /// # Errors
    /// A living process owns it.
    pub fn claim(root: &Path, prefix: &str, nodes: usize) -> Result<Self> {
        let mut lab = Self::new(root, prefix, nodes)?;
        lab.owner = Some(registry::own(&lab)?);
        Ok(lab)
    }

    /// Makes the hosts of a lab that stays when this process ends.
    ///
    /// # Errors
    /// A lab with this prefix is up already, or the kernel refuses something.
    pub fn up(&self) -> Result<()> {
        if let Ok(held) = Self::open(&self.root, &self.prefix) {
            bail!(
                "a lab of {} hosts is up already ({}-n1, …): `cargo xtask lab down` takes it away",
                held.nodes,
                self.prefix
            );
        }
        // What a crashed lab left may lack its hosts and still hold cgroups or mounts.
        self.sweep()?;
        registry::add(self)?;
        self.build().inspect_err(|_| {
            let _ = self.down();
        })
    }

    /// Takes the lab away: processes, mounts, namespaces, cgroups and files.
    ///
    /// # Errors
    /// What could not be taken away.
    pub fn down(&self) -> Result<()> {
        self.sweep()?;
        registry::remove(&self.prefix);
        Ok(())
    }

    /// Uses this `shoal` binary instead of the debug build.
    #[must_use]
    pub fn with_binary(mut self, shoal: PathBuf) -> Self {
        self.shoal = shoal;
        self
    }

    /// The lab's prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The lab's folder, `target/lab` or `target/lab-<prefix>`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The `shoal` binary that daemons run.
    pub fn binary(&self) -> &Path {
        &self.shoal
    }

    /// Names of the hosts that run daemons: `n1`, `n2`, …
    pub fn nodes(&self) -> Vec<String> {
        (1..=self.nodes).map(|i| format!("n{i}")).collect()
    }

    /// Names of all hosts, the client last.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts = self.nodes();
        hosts.push(CLIENT.to_owned());
        hosts
    }

    /// Refuses a name that is no host of this lab.
    ///
    /// # Errors
    /// It is none; the text names those that are.
    pub fn check_host(&self, host: &str) -> Result<()> {
        ensure!(
            self.hosts().iter().any(|h| h == host),
            "no host {host:?} in this lab: it has {}",
            self.hosts().join(", ")
        );
        Ok(())
    }

    /// A host's IPv4 address.
    pub fn addr(&self, host: &str) -> Ipv4Addr {
        let number = host.strip_prefix('n').and_then(|i| i.parse().ok()).unwrap_or(100);
        Ipv4Addr::new(10, 88, 0, number)
    }

    /// A host's IPv6 address; it ends in the digits of the IPv4 one.
    pub fn addr6(&self, host: &str) -> Ipv6Addr {
        let [.., last] = self.addr(host).octets();
        format!("fd88::{last}").parse().expect("a decimal number is also a hexadecimal one")
    }

    /// Both addresses of a host.
    pub fn addrs(&self, host: &str) -> [IpAddr; 2] {
        [self.addr(host).into(), self.addr6(host).into()]
    }

    /// A host's folder: state, sockets, pins and log of its daemon.
    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir.join(host)
    }

    /// The name of a host's namespace.
    pub fn netns_name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// The file that holds a host's namespace.
    pub fn netns(&self, host: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.netns_name(host))
    }

    /// Runs `work` on a thread of its own inside a host's namespace.
    ///
    /// # Errors
    /// The namespace is gone, or this process may not enter it.
    pub fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        net::inside(&self.netns(host), work)
    }

    /// Runs a command on a host to its end and keeps its output.
    ///
    /// # Errors
    /// It cannot be started; its own failure is in the output.
    pub fn output(&self, host: &str, command: &mut Command) -> Result<Output> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.inside(host, || command.output())?
            .with_context(|| format!("cannot run {name} on {host}"))
    }

    /// Runs a command on a host and gives what it wrote; a failure is an error with its stderr.
    ///
    /// # Errors
    /// It cannot be started or fails.
    pub fn run(&self, host: &str, argv: &[&str]) -> Result<String> {
        let (program, args) = argv.split_first().context("an empty command")?;
        let output = self.output(host, Command::new(program).args(args))?;
        checked(&format!("{} (on {host})", argv.join(" ")), &output)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owner.is_some()
            && let Err(error) = self.down()
        {
            eprintln!("lab {}: {error:#}", self.prefix);
        }
    }
}

/// The standard output of a command that succeeded.
///
/// # Errors
/// It failed; the text holds what it said.
pub fn checked(what: &str, output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{what}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Polls until `condition` gives a value or the deadline passes.
///
/// # Errors
/// The deadline passed; the text says what was waited for and the last reason.
pub fn wait_for<T>(
    what: &str,
    deadline: std::time::Duration,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let started = std::time::Instant::now();
    loop {
        let error = match condition() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if started.elapsed() > deadline {
            return Err(error.context(format!("waited {deadline:?} for {what}")));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_from_the_prefix() {
        let lab = Lab::new(Path::new("/w"), "e2e7", 3).unwrap();
        assert_eq!(lab.hosts(), ["n1", "n2", "n3", "client"]);
        assert_eq!(lab.netns("n2"), Path::new("/run/netns/e2e7-n2"));
        assert_eq!(lab.host_dir("n2"), Path::new("/w/target/lab-e2e7/n2"));
        assert_eq!(
            Lab::new(Path::new("/w"), "shoal", 1).unwrap().dir(),
            Path::new("/w/target/lab")
        );
    }

    #[test]
    fn addresses_follow_the_host_number() {
        let lab = Lab::new(Path::new("/w"), "shoal", 3).unwrap();
        assert_eq!(lab.addr("n2"), Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(lab.addr("client"), CLIENT_ADDR);
        assert_eq!(lab.addr6("client"), "fd88::100".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn names_that_could_reach_beyond_the_lab_are_refused() {
        for prefix in ["", "Shoal", "a-b", "../x", "muchtoolongprefix"] {
            assert!(Lab::new(Path::new("/w"), prefix, 3).is_err(), "{prefix}");
        }
        assert!(Lab::new(Path::new("/w"), "shoal", 0).is_err());
        assert!(Lab::new(Path::new("/w"), "shoal", 65).is_err());
    }

    #[test]
    fn an_unknown_host_is_named_with_those_that_exist() {
        let lab = Lab::new(Path::new("/w"), "shoal", 2).unwrap();
        let text = lab.check_host("n3").unwrap_err().to_string();
        assert_eq!(text, "no host \"n3\" in this lab: it has n1, n2, client");
    }
}
