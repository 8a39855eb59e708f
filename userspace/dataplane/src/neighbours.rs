//! Keeps the next hops of `NODES`, and `ADDRESSES`, fresh in the background.
//!
//! The kernel is asked for the route, and told to keep the next hop resolved ("managed"
//! neighbours, Linux 5.16). It reports every change of links, addresses, routes and neighbours; on
//! each, and whenever reports were lost, all next hops are read again. While one is not known, the
//! entry has interface 0: XDP then leaves its packets to TC, whose tunnel lets the kernel resolve.
//!
//! One thing has no report: a path whose MTU the kernel learned from an ICMP error. It is found
//! when everything is read again, at most [`REREAD`] later.

use std::collections::{BTreeMap, BTreeSet, HashMap as StdHashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use shoal_datapath::abi::{Address, Mac};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::addresses::Addresses;
use crate::error::Error;
use crate::net::{Interface, Net};
use crate::nodes::{Hop, Nodes};

/// Everything is read again after this long without a report: a guard against what we did not
/// think of, not the way that changes are found.
const REREAD: Duration = Duration::from_secs(30);
/// Reports come in bursts, several for each task that starts: they are answered together.
const SETTLE: Duration = Duration::from_millis(20);
/// Pause before the socket is opened again after it failed.
const REOPEN: Duration = Duration::from_millis(200);

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Neigh,
    MulticastGroup::Link,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
];

/// `NODES`, `NODE_NUMBERS` and `ADDRESSES`, shared by the plan's writer and the task in the background.
pub(crate) struct Neighbours {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    nodes: Mutex<Nodes>,
    /// Held while they are read and written: the last to write has read last.
    addresses: tokio::sync::Mutex<Addresses>,
    changed: Notify,
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Neighbours {
    /// Takes the maps over as they are and starts to keep them fresh.
    pub(crate) fn start(nodes: Nodes, addresses: Addresses) -> Self {
        let shared = Arc::new(Shared {
            nodes: Mutex::new(nodes),
            addresses: tokio::sync::Mutex::new(addresses),
            changed: Notify::new(),
        });
        let task = tokio::spawn(keep_fresh(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Reads the uplink's addresses now.
    pub(crate) async fn refresh_addresses(&self, net: &Net) -> Result<(), Error> {
        self.shared.addresses.lock().await.refresh(net).await
    }

    /// From now on, another interface is the uplink.
    pub(crate) async fn serve_addresses_of(&self, uplink: u32) {
        self.shared.addresses.lock().await.serve(uplink);
        self.shared.changed.notify_one();
    }

    /// Addresses by number, as the kernel holds them; what `NODE_NUMBERS` holds besides is removed.
    pub(crate) fn read(&self) -> Result<BTreeMap<u16, Address>, Error> {
        let mut nodes = self.shared.nodes.lock();
        let addresses = nodes.read()?;
        nodes.repair_numbers()?;
        Ok(addresses)
    }

    pub(crate) fn put(&self, number: u16, address: Address) -> Result<(), Error> {
        self.shared.nodes.lock().put(number, address)?;
        self.shared.changed.notify_one();
        Ok(())
    }

    pub(crate) fn remove(&self, number: u16) -> Result<(), Error> {
        self.shared.nodes.lock().remove(number)?;
        self.shared.changed.notify_one();
        Ok(())
    }
}

/// Runs until it is aborted; reopens its sockets when they fail.
async fn keep_fresh(shared: Arc<Shared>) {
    let mut managed = BTreeSet::new();
    loop {
        if let Err(error) = follow(&shared, &mut managed).await {
            warn!(%error, "next hops and addresses: cannot follow the kernel, trying again");
        }
        tokio::time::sleep(REOPEN).await;
    }
}

async fn follow(shared: &Shared, managed: &mut BTreeSet<(u32, IpAddr)>) -> Result<(), Error> {
    let io = Error::io("open a netlink socket for reports");
    let (connection, _handle, mut reports) =
        rtnetlink::new_multicast_connection(&GROUPS).map_err(io)?;
    let _connection = AbortOnDrop(tokio::spawn(connection));
    // Questions have their own socket, so that lost reports never take an answer with them.
    let net = Net::open().map_err(Error::io("open a netlink socket"))?;
    loop {
        let addresses = shared.nodes.lock().addresses();
        let hops = resolve(&net, &addresses, managed).await?;
        shared.nodes.lock().learn(hops)?;
        shared.addresses.lock().await.refresh(&net).await?;
        loop {
            tokio::select! {
                () = shared.changed.notified() => break,
                () = tokio::time::sleep(REREAD) => break,
                report = reports.next() => match report {
                    None => return Ok(()),
                    Some((message, _)) => if matters(&message.payload, managed) {
                        break;
                    },
                },
            }
        }
        tokio::time::sleep(SETTLE).await;
        while let Some(report) = reports.next().now_or_never() {
            if report.is_none() {
                return Ok(());
            }
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a report can change a next hop. What is no report (an overrun) always can.
fn matters(
    payload: &NetlinkPayload<RouteNetlinkMessage>,
    managed: &BTreeSet<(u32, IpAddr)>,
) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message),
        ) => destination(message)
            .is_some_and(|address| managed.contains(&(message.header.ifindex, address))),
        _ => true,
    }
}

/// Finds the next hop of every address, and has the kernel keep those resolved.
async fn resolve(
    net: &Net,
    addresses: &BTreeSet<Address>,
    managed: &mut BTreeSet<(u32, IpAddr)>,
) -> Result<StdHashMap<Address, Hop>, Error> {
    let interfaces: StdHashMap<u32, Interface> =
        net.interfaces().await?.into_iter().map(|interface| (interface.index, interface)).collect();
    let known: StdHashMap<(u32, IpAddr), NeighbourMessage> = neighbours(net).await?;
    let mut hops = StdHashMap::new();
    let mut now_managed = BTreeSet::new();
    for address in addresses {
        let node = Ipv6Addr::from(*address).to_canonical();
        let Some(way) = route(net, node).await else { continue };
        let Some(interface) = interfaces.get(&way.ifindex) else { continue };
        let key = (way.ifindex, way.next_hop);
        now_managed.insert(key);
        let neighbour = known.get(&key);
        if !neighbour.is_some_and(|known| is_managed(known) || is_permanent(known)) {
            manage(net, key, true).await;
        }
        let next_hop = neighbour.and_then(resolved);
        if let (Some(next_hop), Some(source), true) = (next_hop, interface.mac, interface.up) {
            let mtu = way.mtu.unwrap_or(interface.mtu).min(interface.mtu);
            hops.insert(*address, Hop { next_hop, source, ifindex: way.ifindex, mtu });
        }
    }
    for key in managed.difference(&now_managed) {
        manage(net, *key, false).await;
    }
    *managed = now_managed;
    Ok(hops)
}

/// Where the kernel would send a packet to a node.
struct Way {
    ifindex: u32,
    next_hop: IpAddr,
    mtu: Option<u32>,
}

/// The kernel's route to a node; `None` while there is none, and for this host itself.
async fn route(net: &Net, node: IpAddr) -> Option<Way> {
    let question = match node {
        IpAddr::V4(node) => {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(node, 32).build()
        }
        IpAddr::V6(node) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(node, 128).build()
        }
    };
    let answer = net.handle.route().get(question).execute().boxed().try_next().await;
    let answer: RouteMessage = answer.ok().flatten()?;
    if answer.header.kind != RouteType::Unicast {
        return None;
    }
    let mut way = Way { ifindex: 0, next_hop: node, mtu: None };
    for attribute in answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.ifindex = index,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => way.next_hop = address.into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => way.next_hop = address.into(),
            RouteAttribute::Metrics(metrics) => {
                way.mtu = metrics.into_iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (way.ifindex != 0).then_some(way)
}

async fn neighbours(net: &Net) -> Result<StdHashMap<(u32, IpAddr), NeighbourMessage>, Error> {
    let all: Vec<NeighbourMessage> = net
        .handle
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(crate::net::failed("*", "list neighbours"))?;
    let by_key = all.into_iter().filter_map(|message| {
        let address = destination(&message)?;
        Some(((message.header.ifindex, address), message))
    });
    Ok(by_key.collect())
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some(IpAddr::from(*address))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some(IpAddr::from(*address))
        }
        _ => None,
    })
}

/// A neighbour's MAC, in the states in which the kernel itself would use it.
fn resolved(message: &NeighbourMessage) -> Option<Mac> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    if !matches!(message.header.state, Reachable | Stale | Delay | Probe | Permanent) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    })
}

fn is_managed(message: &NeighbourMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        NeighbourAttribute::ExtFlags(flags) => flags.contains(NeighbourExtFlags::Managed),
        _ => false,
    })
}

fn is_permanent(message: &NeighbourMessage) -> bool {
    message.header.state == NeighbourState::Permanent
}

/// Has the kernel keep a neighbour resolved, or lets it go again. What it knows of it stays.
///
/// A failure is only logged: TC's tunnel resolves the neighbour with the first packet, too.
pub(crate) async fn manage(net: &Net, (ifindex, address): (u32, IpAddr), on: bool) {
    let mut request = net
        .handle
        .neighbours()
        .add(ifindex, address)
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace();
    if on {
        let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
        request.message_mut().attributes.push(managed);
    }
    if let Err(error) = request.execute().await {
        debug!(%address, ifindex, on, %error, "cannot manage neighbour");
    }
}

/// Neighbours on an interface that the kernel keeps resolved for someone.
pub(crate) async fn managed_on(net: &Net, ifindex: u32) -> Result<Vec<(IpAddr, Mac)>, Error> {
    let all = neighbours(net).await?;
    let ours = all.into_iter().filter(|((index, _), _)| *index == ifindex);
    Ok(ours
        .filter(|(_, message)| is_managed(message))
        .filter_map(|((_, address), message)| Some((address, resolved(&message)?)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_reports_and_known_neighbours_matter_and_strangers_do_not() {
        let managed = BTreeSet::from([(2, IpAddr::from([10, 88, 0, 2]))]);
        let neighbour = |ifindex, last| {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = ifindex;
            let address = NeighbourAddress::Inet([10, 88, 0, last].into());
            message.attributes.push(NeighbourAttribute::Destination(address));
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))
        };
        assert!(matters(&neighbour(2, 2), &managed));
        assert!(!matters(&neighbour(2, 3), &managed));
        assert!(!matters(&neighbour(3, 2), &managed));
        assert!(matters(&NetlinkPayload::Overrun(Vec::new()), &managed));
        let link = RouteNetlinkMessage::NewLink(Default::default());
        assert!(matters(&NetlinkPayload::InnerMessage(link), &managed));
    }
}
