//! Ends forwarding and leaves nothing behind.

use std::collections::BTreeSet;

use aya::maps::{Array, Map, MapData};
use shoal_datapath::abi::{Config, Mac, NODES_MAX, Node, maps};

use crate::error::Error;
use crate::links::{clsact_handle, detach_clsact};
use crate::neighbours::{manage, managed_on};
use crate::net::Net;
use crate::options::Options;
use crate::pins::Pins;
use crate::vlan;

/// Detaches all programs and removes all pins, interfaces and tasks' attachments of these options'
/// pin folder and prefix, in the network namespace of the caller. Nothing there is no error.
///
/// # Errors
/// Something could not be removed; what comes after it is still there.
pub async fn unload(options: &Options) -> Result<(), Error> {
    let net = Net::open().map_err(Error::io("open a netlink socket"))?;
    let pins = Pins::find(&options.pin_dir);
    if let Some(pins) = &pins
        && let Some(config) =
            pinned::<Config>(pins, maps::CONFIG).and_then(|map| map.get(&0, 0).ok())
    {
        let hops = next_hops(pins);
        for (address, mac) in managed_on(&net, config.uplink).await? {
            if hops.contains(&mac) {
                manage(&net, (config.uplink, address), false).await;
            }
        }
        if let Some(uplink) = net.by_index(config.uplink).await? {
            detach_clsact(&uplink.name, clsact_handle(options));
            vlan::restore(pins, &uplink);
        }
    }
    // Programs first: what they forward to goes after them.
    if let Some(pins) = &pins {
        pins.remove_all()?;
    }
    for interface in net.interfaces().await? {
        let ours = options.is_alias(&interface.alias)
            || (interface.name == options.vxlan_name() && interface.vxlan.is_some());
        if ours {
            net.remove(interface.index).await?;
        }
    }
    Ok(())
}

fn pinned<T: aya::Pod>(pins: &Pins, name: &str) -> Option<Array<MapData, T>> {
    let data = MapData::from_pin(pins.maps().join(name)).ok()?;
    Array::try_from(Map::from_map_data(data).ok()?).ok()
}

fn next_hops(pins: &Pins) -> BTreeSet<Mac> {
    let Some(nodes) = pinned::<Node>(pins, maps::NODES) else { return BTreeSet::new() };
    let hops = (1..NODES_MAX).filter_map(|number| nodes.get(&number, 0).ok());
    hops.filter(|node| node.ifindex != 0).map(|node| node.next_hop).collect()
}
