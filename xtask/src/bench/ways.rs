//! The four ways from the client to a task behind two hosts.
//!
//! Hosts 1 and 2 run Shoal and nothing else; hosts 3 and 4 run no daemon and carry the other
//! three ways to a plain task. So no way pays for another's programs, and all have the same
//! topology: client, ingress host, backend host, task, and back through the ingress host.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use shoal_tests::lab::plain::{TASK, TASK_ADDR};
use shoal_tests::lab::{CLIENT, Lab, http, net, wait_for, wire};

use super::Offload;

/// Where the responder listens, one for each way: a proxy and address translation both come from
/// the ingress host's address, and a connection that is not forgotten yet at the task would refuse
/// the other way's next one of the same port for two ticks.
const WEB: u16 = 80;
const WEB_NFTABLES: u16 = 81;
const WEB_HAPROXY: u16 = 82;
const BULK: u16 = 5201;

/// How packets get from the client to the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Plain routing through both hosts.
    Direct,
    /// The published port of a Shoal service.
    Shoal,
    /// Destination NAT and masquerade at the ingress host.
    Nftables,
    /// A proxy in TCP mode at the ingress host.
    Haproxy,
}

impl Way {
    /// Every way; the first is what the others are compared with.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Shoal, Self::Nftables, Self::Haproxy];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Shoal => "shoal",
            Self::Nftables => "nftables",
            Self::Haproxy => "haproxy",
        }
    }

    /// What to say when a measurement on it fails.
    pub fn failed(self) -> String {
        format!("the measurement of {} failed", self.name())
    }
}

/// Where the load goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The responder.
    pub web: SocketAddr,
    /// The `iperf3` server.
    pub bulk: SocketAddr,
}

/// All ways, ready to be measured.
pub struct Ways<'a> {
    lab: &'a Lab,
    /// Where Shoal's tasks are asked for: the host that does not run them.
    shoal: Option<Target>,
    /// Namespaces and interfaces at the ends and at the hosts, by whether Shoal uses them.
    interfaces: Vec<(PathBuf, String)>,
    /// The plain task's servers.
    servers: Vec<Server>,
    /// While it is measured.
    proxy: Option<Server>,
}

/// A process that ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Ways<'a> {
    /// Makes tasks, proxy and, if wanted, a cluster with its services.
    pub fn build(lab: &'a Lab, with_shoal: bool) -> Result<Self> {
        let eth0 = |host: &str| (lab.netns(host), "eth0".to_owned());
        let mut ways = Self {
            lab,
            shoal: None,
            interfaces: vec![eth0("n3"), eth0("n4"), eth0(CLIENT)],
            servers: Vec::new(),
            proxy: None,
        };
        ways.plain()?;
        if with_shoal {
            ways.shoal()?;
        }
        for host in ["n1", "n3", CLIENT] {
            // Thousands of connections a second from one address need many ports.
            lab.set_sysctl(host, "net/ipv4/ip_local_port_range", "1024 65535")?;
            lab.set_sysctl(host, "net/ipv4/tcp_tw_reuse", "1")?;
        }
        Ok(ways)
    }

    /// A plain task behind hosts 3 and 4.
    fn plain(&mut self) -> Result<()> {
        let lab = self.lab;
        lab.add_plain_task("n3", "n4")?;
        self.interfaces.push((lab.netns(TASK), "eth0".to_owned()));
        self.interfaces.push((lab.netns("n4"), "plain0".to_owned()));
        for port in [WEB, WEB_NFTABLES, WEB_HAPROXY] {
            let mut responder = Command::new(lab.binary());
            responder.args(["responder", "--port", &port.to_string()]);
            responder.env("SHOAL_TASK_NAME", "plain.1").env("SHOAL_NODE_NAME", "n4");
            self.servers.push(self.spawn(TASK, &mut responder)?);
        }
        let mut iperf = Command::new("iperf3");
        iperf.args(["--server", "--port", &BULK.to_string()]);
        self.servers.push(self.spawn(TASK, &mut iperf)?);
        self.wait_until_answers(Way::Direct)
    }

    /// Two managers, a responder and an `iperf3` server, each published.
    fn shoal(&mut self) -> Result<()> {
        let lab = self.lab;
        lab.form_with(2, 0)?;
        let (image, binary) = lab.image()?;
        let web = [&image, &binary, "responder", "--port", "80"];
        let web = self.service("web", Ports::SHOAL.web, WEB, &web)?;
        let bulk = ["rootfs:/", "/usr/bin/iperf3", "--server", "--port", "5201"];
        let bulk = self.service("bulk", Ports::SHOAL.bulk, BULK, &bulk)?;
        self.shoal = Some(Target { web, bulk });
        for host in ["n1", "n2"] {
            self.interfaces.push((lab.netns(host), "eth0".to_owned()));
        }
        self.wait_until_answers(Way::Shoal)
    }

    /// Creates a service of one task and gives the address to ask it at.
    fn service(&mut self, name: &str, port: u16, target: u16, argv: &[&str]) -> Result<SocketAddr> {
        let lab = self.lab;
        let publish = format!("{port}:{target}");
        let create = ["service", "create", "--name", name, "-p", &publish];
        lab.shoal("n1", &[create.as_slice(), argv].concat())?;
        let wanted = format!("{name}.1");
        let tasks = lab.tasks();
        let task = tasks.iter().find(|task| task.name == wanted);
        let task = task.with_context(|| format!("{wanted} is not there"))?;
        self.interfaces.push((format!("/proc/{}/ns/net", task.pid).into(), "eth0".to_owned()));
        Ok(SocketAddr::new(lab.addr(other_host(&task.host)?).into(), port))
    }

    fn spawn(&self, host: &str, command: &mut Command) -> Result<Server> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = std::fs::File::create(self.lab.dir().join("bench.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = self.lab.inside(host, || command.spawn())?;
        Ok(Server(child.with_context(|| format!("cannot run {name} on {host}"))?))
    }

    fn wait_until_answers(&self, way: Way) -> Result<()> {
        let target = self.target(way)?.web;
        wait_for(&format!("{} to answer", way.name()), Duration::from_secs(10), || {
            self.lab.inside(CLIENT, || http::ask(target, Duration::from_secs(1)))?
        })?;
        Ok(())
    }

    /// Where the client finds the task by this way.
    pub fn target(&self, way: Way) -> Result<Target> {
        Ok(match way {
            Way::Direct => Ports::DIRECT.at(TASK_ADDR),
            Way::Shoal => self.shoal.context("no cluster was made")?,
            Way::Nftables => Ports::NFTABLES.at(self.lab.addr("n3")),
            Way::Haproxy => Ports::HAPROXY.at(self.lab.addr("n3")),
        })
    }

    /// Makes ready what must be there only while its way is measured: address translation makes
    /// the kernel track every connection, and a proxy has threads, to the cost of the other ways.
    pub fn enter(&mut self, way: Way) -> Result<()> {
        match way {
            Way::Direct | Way::Shoal => return Ok(()),
            Way::Nftables => {
                let rules = self.lab.dir().join("bench.nft");
                std::fs::write(&rules, nft_rules())?;
                self.lab.run("n3", &["nft", "-f", &rules.to_string_lossy()])?;
            }
            Way::Haproxy => {
                let config = self.lab.dir().join("haproxy.cfg");
                std::fs::write(&config, haproxy_config())?;
                let proxy =
                    self.spawn("n3", Command::new("haproxy").arg("-db").arg("-f").arg(config))?;
                self.proxy = Some(proxy);
            }
        }
        self.wait_until_answers(way)
    }

    /// Takes it away again.
    pub fn leave(&mut self, way: Way) -> Result<()> {
        if way == Way::Nftables {
            self.lab.run("n3", &["nft", "delete", "table", "ip", "bench"])?;
        }
        self.proxy = None;
        Ok(())
    }

    /// Sets segmentation and merging at every end and host alike.
    pub fn set_offload(&mut self, offload: Offload) -> Result<()> {
        let on = offload == Offload::On;
        for (netns, interface) in &self.interfaces {
            // Never at the client: the lab keeps it as a sender on a wire.
            let merges = on && *netns != self.lab.netns(CLIENT);
            let settings = [("tso", on), ("gso", on), ("gro", merges)];
            net::inside(netns, || wire::offloads(interface, &settings))??;
        }
        Ok(())
    }
}

/// Published ports of one way.
struct Ports {
    web: u16,
    bulk: u16,
}

impl Ports {
    const DIRECT: Self = Self { web: WEB, bulk: BULK };
    const SHOAL: Self = Self { web: 8080, bulk: 8201 };
    const NFTABLES: Self = Self { web: 9001, bulk: 9201 };
    const HAPROXY: Self = Self { web: 9002, bulk: 9202 };

    fn at(&self, address: Ipv4Addr) -> Target {
        Target {
            web: SocketAddr::new(address.into(), self.web),
            bulk: SocketAddr::new(address.into(), self.bulk),
        }
    }
}

fn nft_rules() -> String {
    let Ports { web, bulk } = Ports::NFTABLES;
    format!(
        "table ip bench {{
  chain pre {{
    type nat hook prerouting priority -100;
    tcp dport {web} dnat to {TASK_ADDR}:{WEB_NFTABLES}
    tcp dport {bulk} dnat to {TASK_ADDR}:{BULK}
  }}
  chain post {{
    type nat hook postrouting priority 100;
    ip daddr {TASK_ADDR} masquerade
  }}
}}
"
    )
}

fn haproxy_config() -> String {
    let Ports { web, bulk } = Ports::HAPROXY;
    format!(
        "global
  maxconn 4000
defaults
  mode tcp
  timeout connect 2s
  timeout client 60s
  timeout server 60s
listen web
  bind :{web}
  server task {TASK_ADDR}:{WEB_HAPROXY}
listen bulk
  bind :{bulk}
  server task {TASK_ADDR}:{BULK}
"
    )
}

/// The host to ask for a task that runs on `host`, so that every request crosses both.
fn other_host(host: &str) -> Result<&'static str> {
    ensure!(["n1", "n2"].contains(&host), "{host} runs a task although it has no daemon");
    Ok(if host == "n1" { "n2" } else { "n1" })
}
