//! VLAN tags and native XDP.
//!
//! A driver with receive offload takes a frame's tag off before XDP sees it, so a frame of another
//! VLAN would look like one of ours, and what XDP sends back would leave without its tag. The
//! offload is off while XDP is native; the stack then takes tags off itself. A folder beside the
//! pins notes that it was on, so that whoever ends XDP there, also another process, turns it on.

use std::io;

use tracing::{debug, info};

use crate::net::Interface;
use crate::pins::Pins;
use crate::sys;

/// Has the driver leave tags in their frames.
pub(crate) fn keep_tags(pins: &Pins, uplink: &Interface) -> io::Result<()> {
    if !sys::takes_vlan_tags_off(&uplink.name)? {
        return Ok(());
    }
    pins.note_vlan(uplink.index)?;
    if let Err(error) = sys::take_vlan_tags_off(&uplink.name, false) {
        pins.take_vlan_note(uplink.index);
        return Err(error);
    }
    info!(interface = %uplink.name, "rx-vlan-offload is off: XDP must see VLAN tags");
    Ok(())
}

/// Turns on again what [`keep_tags`] turned off.
pub(crate) fn restore(pins: &Pins, uplink: &Interface) {
    if !pins.take_vlan_note(uplink.index) {
        return;
    }
    match sys::take_vlan_tags_off(&uplink.name, true) {
        Ok(()) => info!(interface = %uplink.name, "rx-vlan-offload is on again"),
        Err(error) => debug!(%error, interface = %uplink.name, "rx-vlan-offload stays off"),
    }
}
