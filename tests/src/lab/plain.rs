//! A task without Shoal: a namespace behind a host that routes to it, for comparisons.
//!
//! The way of its packets is the one a Shoal task has: client, ingress host, backend host, task,
//! and back through the ingress host. One lab has at most one.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

use super::net::{add_netns, ip_batch};
use super::{CLIENT, CLIENT_ADDR, Lab};

/// Name of the task's namespace among the hosts.
pub const TASK: &str = "task";
/// The task's address.
pub const TASK_ADDR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

impl Lab {
    /// Puts a plain task behind `backend`, reached by routing through `ingress`.
    ///
    /// # Errors
    /// The lab is not up or has one already.
    pub fn add_plain_task(&self, ingress: &str, backend: &str) -> Result<()> {
        let netns = self.netns_name(TASK);
        add_netns(&netns)?;
        self.inside(backend, || {
            ip_batch(&format!(
                "link add plain0 mtu 1500 type veth peer name eth0 mtu 1500 netns {netns}\n\
                 addr add 10.99.0.1/24 dev plain0\n\
                 link set plain0 up\n\
                 route add {CLIENT_ADDR}/32 via {}\n",
                self.addr(ingress)
            ))
        })??;
        self.inside(TASK, || {
            ip_batch(&format!(
                "link set lo up\n\
                 addr add {TASK_ADDR}/24 dev eth0\n\
                 link set eth0 up\n\
                 route add default via 10.99.0.1\n"
            ))
        })??;
        let subnet = "10.99.0.0/24";
        for (host, via) in [(ingress, backend), (CLIENT, ingress)] {
            let route = format!("route add {subnet} via {}\n", self.addr(via));
            self.inside(host, || ip_batch(&route))??;
        }
        for host in [ingress, backend] {
            // In and out by one interface is the point here, so nobody should be redirected.
            let settings = [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/eth0/send_redirects", "0"),
            ];
            self.inside(host, || settings.iter().try_for_each(|(key, value)| set(key, value)))??;
        }
        Ok(())
    }

    /// Sets a sysctl of a host's namespace, as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// There is none of this name, or the value is refused.
    pub fn set_sysctl(&self, host: &str, key: &str, value: &str) -> Result<()> {
        self.inside(host, || set(key, value))?
    }
}

fn set(key: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("cannot set {key}"))
}
