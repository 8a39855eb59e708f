//! Tasks' interfaces: a veth into the task's namespace, its address, route and gateway, our program
//! on the host's side, and the entry in `ENDPOINTS`.
//!
//! The host's side is named after the task and carries the task's id as its alias, so that a
//! restarted daemon finds it again.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use shoal_datapath::abi::{Address, Endpoint, Mac, OVERHEAD, programs};
use shoal_routing::plan::address_bytes;
use shoal_routing::{TaskLink, TaskPort};
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::links::task_link;
use crate::load::Dataplane;
use crate::net::{Interface, Net, TaskSide, failed};

/// Name of the interface that a task sees.
const TASK_INTERFACE: &str = "eth0";
const LOOPBACK: &str = "lo";

impl Dataplane {
    pub(crate) async fn attach_task(
        &mut self,
        link: &TaskLink,
        netns: BorrowedFd<'_>,
    ) -> Result<TaskPort, Error> {
        if link.address.is_ipv4() != link.gateway.is_ipv4() {
            return Err(Error::Family { address: link.address, gateway: link.gateway });
        }
        let inside = Net::open_in(netns).map_err(Error::io("enter the task's namespace"))?;
        let name = self.options.veth_name(&link.task_id);
        let (host, held) = match self.held_veth(&name, link, &inside).await? {
            Some(host) => (host, true),
            None => (self.add_veth(&name, link, netns).await?, false),
        };
        let host_mac = host.mac.ok_or_else(|| Error::Missing { interface: host.name.clone() })?;
        let port = TaskPort { ifindex: host.index, host_mac };

        // The program before the interface is up: no packet passes by it. Another release's goes on
        // with that release's flows until all change over.
        if !(held && self.changing_over) {
            let program = programs::TASK_TC;
            self.links.attach_tc(&mut self.ebpf, program, &task_link(&name), &host)?;
        }
        let endpoint = Endpoint {
            address: address_bytes(link.address),
            ifindex: host.index,
            gateway: host_mac,
            pad: [0; 2],
        };
        self.drop_endpoints_of(host.index, Some(link.mac))?;
        self.net.set_up(host.index).await.map_err(failed(&name, "set it up"))?;
        configure(&inside, link, host_mac).await?;
        self.tables.put_endpoint(link.mac, endpoint)?;
        info!(task.id = %link.task_id, interface = %name, address = %link.address, "task attached");
        Ok(port)
    }

    pub(crate) async fn detach_task(&mut self, task_id: &str) -> Result<(), Error> {
        let name = self.options.veth_name(task_id);
        match self.net.by_name(&name).await? {
            Some(host) if host.alias.is_empty() || host.alias == self.options.alias(task_id) => {
                let ended = self.drop_endpoints_of(host.index, None)?;
                self.net.remove(host.index).await?;
                // After the interface: no packet makes a new one then.
                self.drop_flows_of(ended)?;
            }
            // Another task's interface: nothing here is this one's.
            Some(_) => return Ok(()),
            None => {}
        }
        self.links.remove_pins(&task_link(&name), None)?;
        self.sweep_endpoints().await
    }

    /// The task's veth if it is there and right; one that is ours and wrong is removed.
    async fn held_veth(
        &mut self,
        name: &str,
        link: &TaskLink,
        inside: &Net,
    ) -> Result<Option<Interface>, Error> {
        let Some(host) = self.net.by_name(name).await? else { return Ok(None) };
        let alias = self.options.alias(&link.task_id);
        if !host.alias.is_empty() && host.alias != alias {
            return Err(Error::Taken { interface: name.into(), alias: host.alias });
        }
        let task = inside.by_name(TASK_INTERFACE).await?;
        let right = task.is_some_and(|task| {
            host.alias == alias
                && task.mac == Some(link.mac)
                && task.peer == Some(host.index)
                && host.peer == Some(task.index)
        });
        if right {
            return Ok(Some(host));
        }
        self.drop_endpoints_of(host.index, None)?;
        self.net.remove(host.index).await?;
        Ok(None)
    }

    async fn add_veth(
        &self,
        name: &str,
        link: &TaskLink,
        netns: BorrowedFd<'_>,
    ) -> Result<Interface, Error> {
        // What a task sends must still fit the underlay with a tunnel's headers around it.
        let mtu = self.uplink.mtu.saturating_sub(OVERHEAD);
        let task = TaskSide { netns, name: TASK_INTERFACE, mac: link.mac };
        self.net.add_veth(name, mtu, &task).await.map_err(failed(name, "make it"))?;
        let missing = || Error::Missing { interface: name.into() };
        let host = self.net.by_name(name).await?.ok_or_else(missing)?;
        let alias = self.options.alias(&link.task_id);
        self.net.set_alias(host.index, &alias).await.map_err(failed(name, "name it"))?;
        if let Err(error) = self.net.no_own_address(host.index).await {
            warn!(%error, interface = name, "the kernel gives it an IPv6 address of its own");
        }
        Ok(host)
    }

    /// Returns the addresses that were the interface's.
    fn drop_endpoints_of(
        &mut self,
        ifindex: u32,
        but: Option<Mac>,
    ) -> Result<BTreeSet<Address>, Error> {
        let mut dropped = BTreeSet::new();
        for (mac, endpoint) in self.tables.endpoints() {
            if endpoint.ifindex == ifindex && Some(mac) != but {
                self.tables.drop_endpoint(mac)?;
                dropped.insert(endpoint.address);
            }
        }
        Ok(dropped)
    }

    /// Forgets what ended tasks' clients addressed: the next task of such an address may belong to
    /// another service, and its packets to those clients would leave under the old one's port.
    fn drop_flows_of(&mut self, mut ended: BTreeSet<Address>) -> Result<(), Error> {
        if !ended.is_empty() {
            for endpoint in self.tables.endpoints().values() {
                ended.remove(&endpoint.address);
            }
            let flows = self.tables.drop_flows(&ended)?;
            debug!(tasks = ended.len(), flows, "flows of ended tasks forgotten");
        }
        Ok(())
    }

    /// Removes what refers to interfaces of tasks that are gone.
    pub(crate) async fn sweep_endpoints(&mut self) -> Result<(), Error> {
        let ours = self.task_interfaces().await?;
        let mut ended = BTreeSet::new();
        for (mac, endpoint) in self.tables.endpoints() {
            if !ours.iter().any(|interface| interface.index == endpoint.ifindex) {
                self.tables.drop_endpoint(mac)?;
                ended.insert(endpoint.address);
            }
        }
        self.drop_flows_of(ended)?;
        self.links.sweep_tasks(&ours)
    }

    /// Takes the tasks over that another release attached, as they still are: whoever attached them
    /// may ask for them only after the first plan.
    pub(crate) fn adopt_endpoints(&mut self, tasks: &[Interface]) {
        let known = |endpoint: &Endpoint| {
            tasks.iter().any(|interface| {
                interface.index == endpoint.ifindex && interface.mac == Some(endpoint.gateway)
            })
        };
        match self.tables.adopt_endpoints(&self.pins.old_maps(), known) {
            Ok(tasks) => debug!(tasks, "tasks of another release taken over"),
            Err(error) => warn!(%error, "tasks of another release must be attached again"),
        }
    }

    /// The host's sides of all tasks' veths.
    pub(crate) async fn task_interfaces(&self) -> Result<Vec<Interface>, Error> {
        let mut all = self.net.interfaces().await?;
        all.retain(|interface| self.options.is_alias(&interface.alias));
        Ok(all)
    }
}

/// Everything inside the task's namespace.
async fn configure(inside: &Net, link: &TaskLink, gateway_mac: Mac) -> Result<(), Error> {
    let missing = |interface: &str| Error::Missing { interface: interface.into() };
    let lo = inside.by_name(LOOPBACK).await?.ok_or_else(|| missing(LOOPBACK))?;
    inside.set_up(lo.index).await.map_err(failed(LOOPBACK, "set it up"))?;
    let name = TASK_INTERFACE;
    let eth = inside.by_name(name).await?.ok_or_else(|| missing(name))?;
    if link.address.is_ipv4()
        && let Err(error) = inside.no_own_address(eth.index).await
    {
        warn!(%error, task.id = %link.task_id, "the kernel gives the task an IPv6 address");
    }
    inside
        .add_address(eth.index, link.address, link.prefix)
        .await
        .map_err(failed(name, "give it an address"))?;
    inside.set_up(eth.index).await.map_err(failed(name, "set it up"))?;
    inside
        .add_neighbour(eth.index, link.gateway, gateway_mac)
        .await
        .map_err(failed(name, "make the gateway known"))?;
    inside
        .add_default_route(eth.index, link.gateway)
        .await
        .map_err(failed(name, "give it a default route"))
}
