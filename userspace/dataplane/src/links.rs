//! Programs on interfaces, so that they stay when this process ends and change without a gap.
//!
//! A link is pinned as `links/NAME-IFINDEX`. Loading again swaps the program under the pinned link;
//! a link whose interface is gone is replaced. Kernels without tcx get a clsact filter at a fixed
//! place, which survives by itself and is replaced in that place.

use std::error::Error as StdError;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaXdpMode};
use shoal_datapath::abi::programs;
use tracing::{debug, info, warn};

use crate::error::{Error, LoadError};
use crate::net::Interface;
use crate::options::{Options, TcMode, XdpMode};
use crate::pins::Pins;
use crate::sys;
use crate::vlan;

/// Our clsact filters' priority: nobody else's default.
const PRIORITY: u16 = 0x5348;

/// Names of the uplink's pinned XDP link.
const XDP_NATIVE: &str = "xdp-native";
const XDP_GENERIC: &str = "xdp-generic";

type Cause = Box<dyn StdError + Send + Sync>;

/// How TC programs are attached, once that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tc {
    Tcx,
    Clsact,
}

impl Tc {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Attaches programs and pins their links.
#[derive(Debug)]
pub(crate) struct Links {
    pins: Pins,
    mode: TcMode,
    /// Our clsact filter's place.
    handle: TcHandle,
    /// What the first attachment found out.
    tc: Option<Tc>,
    /// What was said last about it.
    why_no_xdp: Option<String>,
}

impl Links {
    pub(crate) fn new(pins: Pins, options: &Options) -> Self {
        let handle = clsact_handle(options);
        Self { pins, mode: options.tc, handle, tc: None, why_no_xdp: None }
    }

    pub(crate) fn tc(&self) -> Option<Tc> {
        self.tc
    }

    /// Puts a TC program on an interface's ingress, instead of the one that the last process put
    /// there as `name`. True if there was none.
    pub(crate) fn attach_tc(
        &mut self,
        ebpf: &mut Ebpf,
        program: &'static str,
        name: &str,
        interface: &Interface,
    ) -> Result<bool, Error> {
        let attach_failed =
            |cause: Cause| Error::Attach { program, interface: interface.name.clone(), cause };
        let classifier = classifier(ebpf, program)?;
        let by_tcx = match (self.tc, self.mode) {
            (Some(Tc::Clsact), _) | (None, TcMode::Clsact) => None,
            (Some(Tc::Tcx), _) | (None, TcMode::Tcx) => {
                Some(self.attach_tcx(classifier, name, interface).map_err(attach_failed)?)
            }
            (None, TcMode::Auto) => match self.attach_tcx(classifier, name, interface) {
                Ok(new) => Some(new),
                Err(error) => {
                    info!(%error, "no tcx links here: using clsact filters");
                    None
                }
            },
        };
        if let Some(new) = by_tcx {
            self.remove_pins(name, Some(interface.index))?;
            // A filter of an earlier start in the other mode would see each packet again.
            detach_clsact(&interface.name, self.handle);
            self.tc = Some(Tc::Tcx);
            Ok(new)
        } else {
            let new =
                attach_clsact(classifier, &interface.name, self.handle).map_err(attach_failed)?;
            self.remove_pins(name, None)?;
            self.tc = Some(Tc::Clsact);
            Ok(new)
        }
    }

    fn attach_tcx(
        &self,
        program: &mut SchedClassifier,
        name: &str,
        interface: &Interface,
    ) -> Result<bool, Cause> {
        let pin = self.pins.links().join(pin_name(name, interface.index));
        if pin.exists() {
            let mut swapped = || -> Result<(), Cause> {
                let link: SchedClassifierLink =
                    FdLink::from(PinnedLink::from_pin(&pin)?).try_into()?;
                let id = program.attach_to_link(link)?;
                // The pin holds the link; ours may go.
                drop(program.take_link(id)?);
                Ok(())
            };
            match swapped() {
                Ok(()) => return Ok(false),
                // It was detached, or its interface is gone and the index is used again.
                Err(error) => debug!(%error, pin = %pin.display(), "pinned link is of no use"),
            }
            self.pins.remove_link(&pin_name(name, interface.index))?;
        }
        let id = program.attach_with_options(
            &interface.name,
            TcAttachType::Ingress,
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        )?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&pin)?;
        Ok(true)
    }

    /// Puts the XDP program on the uplink as `mode` says. Says how it got there, and whether it was
    /// not there yet.
    pub(crate) fn attach_xdp(
        &mut self,
        ebpf: &mut Ebpf,
        mode: XdpMode,
        uplink: &Interface,
    ) -> Result<(&'static str, bool), LoadError> {
        match mode {
            XdpMode::Off => self.no_xdp(uplink, "not wanted".into()),
            XdpMode::Native => {
                if let Err(error) = vlan::keep_tags(&self.pins, uplink) {
                    let interface = &uplink.name;
                    warn!(%error, interface, "XDP cannot tell frames of another VLAN from ours");
                }
                let new = self
                    .xdp(ebpf, XDP_NATIVE, AyaXdpMode::Driver, uplink)
                    .map_err(|cause| feature("run XDP in this driver", cause))?;
                Ok(("native", new))
            }
            XdpMode::Generic => {
                vlan::restore(&self.pins, uplink);
                let new = self
                    .xdp(ebpf, XDP_GENERIC, AyaXdpMode::Skb, uplink)
                    .map_err(|cause| feature("run XDP on this interface", cause))?;
                Ok(("generic", new))
            }
            XdpMode::Auto => {
                let driver = sys::driver(&uplink.name).unwrap_or_default();
                if let Some(why) = worse_than_tc(&driver) {
                    return self.no_xdp(uplink, why.into());
                }
                if let Err(error) = vlan::keep_tags(&self.pins, uplink) {
                    return self.no_xdp(uplink, format!("VLAN tags would be lost: {error}"));
                }
                match self.xdp(ebpf, XDP_NATIVE, AyaXdpMode::Driver, uplink) {
                    Ok(new) => Ok(("native", new)),
                    Err(error) => self.no_xdp(uplink, error.to_string()),
                }
            }
        }
    }

    fn no_xdp(
        &mut self,
        uplink: &Interface,
        why: String,
    ) -> Result<(&'static str, bool), LoadError> {
        // Once, not at every repair.
        if self.why_no_xdp.as_ref() != Some(&why) {
            info!(interface = %uplink.name, why, "no XDP: TC does its work");
            self.why_no_xdp = Some(why);
        }
        self.remove_pins(XDP_NATIVE, None)?;
        self.remove_pins(XDP_GENERIC, None)?;
        vlan::restore(&self.pins, uplink);
        Ok(("off", false))
    }

    fn xdp(
        &self,
        ebpf: &mut Ebpf,
        name: &'static str,
        mode: AyaXdpMode,
        uplink: &Interface,
    ) -> Result<bool, Cause> {
        // An interface has one XDP program; the other mode's link must go first. TC sees the
        // packets of that moment.
        let other = if name == XDP_NATIVE { XDP_GENERIC } else { XDP_NATIVE };
        self.remove_pins(other, None)?;
        let program: &mut Xdp = ebpf
            .program_mut(programs::INGRESS_XDP)
            .ok_or(Error::Object { what: "program", name: programs::INGRESS_XDP })?
            .try_into()?;
        let pin = self.pins.links().join(pin_name(name, uplink.index));
        self.remove_pins(name, Some(uplink.index))?;
        if pin.exists() {
            let mut swapped = || -> Result<(), Cause> {
                let link = FdLink::from(PinnedLink::from_pin(&pin)?).try_into()?;
                let id = program.attach_to_link(link)?;
                drop(program.take_link(id)?);
                Ok(())
            };
            match swapped() {
                Ok(()) => return Ok(false),
                Err(error) => debug!(%error, pin = %pin.display(), "pinned link is of no use"),
            }
            self.pins.remove_link(&pin_name(name, uplink.index))?;
        }
        let id = program.attach_to_if_index(uplink.index, mode)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&pin)?;
        Ok(true)
    }

    /// Removes the pinned links called `name` on any interface but one.
    pub(crate) fn remove_pins(&self, name: &str, but: Option<u32>) -> Result<(), Error> {
        for pin in self.pins.link_names()? {
            if let Some((of, index)) = split_pin_name(&pin)
                && of == name
                && Some(index) != but
            {
                self.pins.remove_link(&pin)?;
            }
        }
        Ok(())
    }

    /// Removes the pinned links of tasks whose interface is not among these.
    pub(crate) fn sweep_tasks(&self, interfaces: &[Interface]) -> Result<(), Error> {
        for pin in self.pins.link_names()? {
            if let Some((of, index)) = split_pin_name(&pin)
                && let Some(name) = of.strip_prefix("task-")
                && !interfaces.iter().any(|known| known.name == name && known.index == index)
            {
                self.pins.remove_link(&pin)?;
            }
        }
        Ok(())
    }
}

/// Why XDP would lose packets or time in a driver that has it. None of this shows when it is
/// attached.
fn worse_than_tc(driver: &str) -> Option<&'static str> {
    match driver {
        "virtio_net" => Some("virtio shows packets without their checksum"),
        "veth" => Some("what it sends back from a veth arrives only if the far end has XDP, too"),
        "tun" => Some("tun shows packets without their checksum"),
        // The packet names the port that it came by, and next hops name the bond.
        "bonding" | "team" => Some("packets come by the ports and leave by the bond"),
        _ => None,
    }
}

/// Name of the pinned link of a task's interface, without its index.
pub(crate) fn task_link(interface: &str) -> String {
    format!("task-{interface}")
}

fn pin_name(name: &str, ifindex: u32) -> String {
    format!("{name}-{ifindex}")
}

fn split_pin_name(pin: &str) -> Option<(&str, u32)> {
    let (name, index) = pin.rsplit_once('-')?;
    Some((name, index.parse().ok()?))
}

fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, Error> {
    let missing = Error::Object { what: "program", name };
    match ebpf.program_mut(name).map(<&mut SchedClassifier>::try_from) {
        Some(Ok(program)) => Ok(program),
        _ => Err(missing),
    }
}

fn feature(feature: &'static str, cause: Cause) -> LoadError {
    LoadError::Feature { feature, cause }
}

/// Where our clsact filter is among those of our priority. Daemons of other prefixes have their own,
/// so that none replaces another's in one network namespace.
pub(crate) fn clsact_handle(options: &Options) -> TcHandle {
    // FNV-1a, folded: the same in every release.
    let hash = options
        .prefix
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let folded = u16::try_from(hash >> 16 ^ hash & 0xffff).expect("both halves have 16 bits");
    // 0 would let the kernel choose.
    TcHandle::new(0, folded.max(1))
}

/// True if there was no filter of ours.
fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    handle: TcHandle,
) -> Result<bool, Cause> {
    // There may be one already, ours or another's; both are right.
    if let Err(error) = tc::qdisc_add_clsact(interface) {
        debug!(%error, interface, "clsact");
    }
    let held =
        SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, handle, None)?;
    let (id, new) = match program.attach_to_link(held) {
        Ok(id) => (id, false),
        Err(_) => {
            let place = NlOptions { priority: PRIORITY, handle, classid: None };
            let options = TcAttachOptions::Netlink(place);
            (program.attach_with_options(interface, TcAttachType::Ingress, options)?, true)
        }
    };
    // Dropping it would detach the filter, which must outlive us.
    std::mem::forget(program.take_link(id)?);
    Ok(new)
}

/// Removes our clsact filter, if there is one.
pub(crate) fn detach_clsact(interface: &str, handle: TcHandle) {
    let held =
        SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, handle, None);
    drop(held);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_name_tells_what_it_is_and_where() {
        let pin = pin_name(&task_link("shvabc"), 12);
        assert_eq!(split_pin_name(&pin), Some(("task-shvabc", 12)));
        assert_eq!(split_pin_name("uplink"), None);
    }

    #[test]
    fn xdp_is_left_out_where_it_would_lose_packets_in_silence() {
        for driver in ["virtio_net", "veth", "tun", "bonding", "team"] {
            assert!(worse_than_tc(driver).is_some(), "{driver}");
        }
        for driver in ["mlx5_core", "ice", "ixgbe", ""] {
            assert_eq!(worse_than_tc(driver), None, "{driver}");
        }
    }
}
