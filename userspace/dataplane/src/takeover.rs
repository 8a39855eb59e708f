//! What a start does with what an earlier one left, or with its own half-made things.
//!
//! Pinned maps of this ABI are used as they are; those of another are put aside while they forward.
//! A first start that fails is undone; a restart that fails leaves what forwards.

use std::path::Path;

use aya::maps::{Array, MapData};
use shoal_datapath::abi::{ABI_VERSION, Config, maps};
use tracing::warn;

use crate::error::{Error, LoadError};
use crate::links::{clsact_handle, detach_clsact};
use crate::net::{Interface, Net};
use crate::options::Options;
use crate::pins::Pins;
use crate::vlan;

/// What a start finds.
pub(crate) enum Before {
    /// No packet is forwarded.
    Nothing,
    /// Packets may be forwarded, with this configuration if it is of this release.
    Forwarding(Option<Config>),
}

impl Before {
    /// A clsact filter has no pin that would tell, so maps that were given a plan count as well.
    pub(crate) fn find(pins: &Pins) -> Result<Self, Error> {
        let path = pins.maps().join(maps::CONFIG);
        let config = pinned_config(&path);
        let planned = path.exists() && config.is_none_or(|config| config.node != 0);
        if planned || pins.has_old() || !pins.link_names()?.is_empty() {
            return Ok(Self::Forwarding(config.filter(|config| config.abi == ABI_VERSION)));
        }
        Ok(Self::Nothing)
    }
}

/// Gives the programs that stay their own configuration again.
pub(crate) fn put_back(pins: &Pins, config: Config) {
    let map = open_config(&pins.maps().join(maps::CONFIG));
    if let Some(Err(error)) = map.map(|mut map| map.set(0, config, 0)) {
        warn!(%error, "a failed start left its configuration to what forwards");
    }
}

/// Removes what a failed first start made. Tasks' interfaces are none of it: they may be those of a
/// daemon whose pins were lost.
pub(crate) async fn undo(pins: &Pins, options: &Options, uplink: &Interface) {
    let undone = async {
        vlan::restore(pins, uplink);
        pins.remove_all()?;
        detach_clsact(&uplink.name, clsact_handle(options));
        let net = Net::open().map_err(Error::io("open a netlink socket"))?;
        match net.by_name(&options.vxlan_name()).await? {
            Some(device) if device.vxlan.is_some() => Ok(net.remove(device.index).await?),
            _ => Ok(()),
        }
    };
    let undone: Result<(), LoadError> = undone.await;
    if let Err(error) = undone {
        warn!(%error, "a failed start left something behind");
    }
}

/// Decides about pinned maps. True: those of another release are put aside and still forward.
pub(crate) fn make_room(pins: &Pins) -> Result<bool, LoadError> {
    let pinned = pins.maps().join(maps::CONFIG);
    if !pinned.exists() {
        if pins.link_names()?.is_empty() {
            // A start that was killed among the first maps left them: they may be of any release.
            pins.remove_maps()?;
        }
        return Ok(pins.has_old());
    }
    match pinned_config(&pinned).map(|config| config.abi) {
        Some(ABI_VERSION) => Ok(pins.has_old()),
        // Made and never filled in: nothing was attached to them.
        Some(0) => {
            pins.remove_maps()?;
            Ok(pins.has_old())
        }
        abi => {
            warn!(?abi, own = ABI_VERSION, "maps of another release: replaced at the first plan");
            pins.put_aside()?;
            Ok(true)
        }
    }
}

/// Configuration in pinned maps; `None` if there is none or it has another form.
fn pinned_config(path: &Path) -> Option<Config> {
    open_config(path)?.get(&0, 0).ok()
}

fn open_config(path: &Path) -> Option<Array<MapData, Config>> {
    let data = MapData::from_pin(path).ok()?;
    aya::maps::Map::from_map_data(data).ok()?.try_into().ok()
}
