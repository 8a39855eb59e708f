//! Namespaces, the switch and the links between them.
//!
//! The switch is a bridge in a namespace of its own; its port toward host `n1` is named `n1`, the
//! other end is the host's `eth0`. No interface of a lab ever stands in the machine's own
//! namespace, so names need not be unique there.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};

use super::{CLIENT, Lab, SWITCH, daemon, wire};

/// Runs `work` on a thread of its own inside the namespace at `path`.
///
/// # Errors
/// The namespace is gone, or this process may not enter it.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let netns = fs::File::open(path)
        .with_context(|| format!("no namespace {}: is the lab up?", path.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || -> Result<T> {
            // Only this thread changes its namespace, and it ends with the work.
            setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace (root?)")?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Lab {
    /// Makes namespaces, switch, links, addresses, mounts and cgroups.
    pub(super) fn build(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab needs root: it makes network namespaces and mounts");
        }
        for host in self.hosts().iter().map(String::as_str).chain([SWITCH]) {
            fs::create_dir_all(self.host_dir(host))
                .with_context(|| format!("cannot make {}", self.host_dir(host).display()))?;
            mount_bpffs(&self.host_dir(host).join("bpf"))?;
            add_netns(&self.netns_name(host))?;
        }
        self.inside(SWITCH, || {
            set_sysctls(&["all", "default"], &[("disable_ipv6", "1")])?;
            self.plug_in()
        })??;
        for host in self.hosts() {
            self.inside(&host, || self.configure(&host))??;
        }
        self.inside(SWITCH, || wire::ports(&self.host_dir(SWITCH).join("bpf"), &self.nodes()))??;
        self.inside(SWITCH, || wire::offloads_off(&self.hosts()))??;
        self.inside(CLIENT, || wire::offloads_off(&["eth0".to_owned()]))??;
        daemon::make_cgroups(self)
    }

    /// The bridge and one veth pair per host; runs inside the switch.
    fn plug_in(&self) -> Result<()> {
        let mut batch = String::from(
            "link set lo up\n\
             link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set br0 up\n",
        );
        for host in self.hosts() {
            let netns = self.netns_name(&host);
            batch += &format!(
                "link add {host} mtu 1500 type veth peer name eth0 mtu 1500 netns {netns}\n\
                 link set {host} master br0 up\n"
            );
        }
        ip_batch(&batch)
    }

    /// Addresses of one host; runs inside it.
    fn configure(&self, host: &str) -> Result<()> {
        // Without this a link-local address is unusable for the first seconds.
        set_sysctls(&["eth0"], &[("accept_dad", "0"), ("accept_ra", "0")])?;
        let (v4, v6) = (self.addr(host), self.addr6(host));
        ip_batch(&format!(
            "link set lo up\n\
             addr add {v4}/24 brd + dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n"
        ))
    }

    /// Takes a host's link away at the switch, as if its cable were pulled.
    ///
    /// # Errors
    /// The lab is not up.
    pub fn cut(&self, host: &str) -> Result<()> {
        self.set_port(host, "down")
    }

    /// Brings a host's link back.
    ///
    /// # Errors
    /// The lab is not up.
    pub fn heal(&self, host: &str) -> Result<()> {
        self.set_port(host, "up")
    }

    fn set_port(&self, host: &str, state: &str) -> Result<()> {
        self.check_host(host)?;
        self.inside(SWITCH, || ip_batch(&format!("link set {host} {state}\n")))?
    }

    /// Whether a host's port at the switch is up.
    ///
    /// # Errors
    /// The lab is not up.
    pub fn is_linked(&self, host: &str) -> Result<bool> {
        let text = self.run(SWITCH, &["ip", "-json", "link", "show", "dev", host])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let flags = links[0]["flags"].as_array().cloned().unwrap_or_default();
        Ok(flags.iter().any(|f| f == "UP"))
    }
}

/// Feeds lines to one `ip` process in the calling thread's namespace.
pub(crate) fn ip_batch(lines: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip: `cargo xtask setup` installs it")?;
    let mut stdin = ip.stdin.take().expect("stdin is a pipe");
    stdin.write_all(lines.as_bytes()).context("ip took no input")?;
    drop(stdin);
    super::checked("ip -batch", &ip.wait_with_output()?)?;
    Ok(())
}

/// Makes a named namespace.
pub(super) fn add_netns(name: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(["netns", "add", name])
        .output()
        .context("cannot run ip: `cargo xtask setup` installs it")?;
    super::checked(&format!("ip netns add {name}"), &output)?;
    Ok(())
}

/// Sets IPv6 settings of interfaces; `/proc/sys/net` shows the calling thread's namespace.
fn set_sysctls(interfaces: &[&str], settings: &[(&str, &str)]) -> Result<()> {
    let root = Path::new("/proc/sys/net/ipv6/conf");
    if !root.exists() {
        return Ok(()); // A kernel without IPv6 has nothing to set.
    }
    for interface in interfaces {
        for (key, value) in settings {
            let path = root.join(interface).join(key);
            fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))?;
        }
    }
    Ok(())
}

/// A BPF file system of its own, so that unmounting it removes every pin.
fn mount_bpffs(path: &Path) -> Result<()> {
    fs::create_dir_all(path)?;
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount a BPF file system at {}", path.display()))?;
    // A shared mount would live on in every mount namespace that a task makes.
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .with_context(|| format!("cannot make {} private", path.display()))
}
