//! What the caller chooses.

use std::net::IpAddr;
use std::path::PathBuf;

use shoal_datapath::abi::FLOWS_MAX;

/// Where and how the data plane lives on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Folder of the pins. If it is not on a bpffs, one is mounted there. Forwarding outlives this
    /// process only if its mount namespace does.
    pub pin_dir: PathBuf,
    /// Interface that clients and nodes are reached through; by default the one that holds
    /// `data_path_addr`.
    pub uplink: Option<String>,
    /// This node's address on the underlay.
    pub data_path_addr: IpAddr,
    /// UDP port of VXLAN, the same on every node.
    pub vxlan_port: u16,
    /// What our interfaces' names begin with: `shoal` makes `shoal-vx` and `shv…`.
    pub prefix: String,
    /// Whether and how the uplink gets an XDP program.
    pub xdp: XdpMode,
    /// How programs are attached to TC.
    pub tc: TcMode,
    /// Size of the flow table, in flows. A table that is pinned already keeps its size.
    pub flows_max: u32,
}

impl Options {
    /// The defaults around the two choices that have none.
    #[must_use]
    pub fn new(pin_dir: impl Into<PathBuf>, data_path_addr: IpAddr) -> Self {
        Self {
            pin_dir: pin_dir.into(),
            uplink: None,
            data_path_addr,
            vxlan_port: 4789,
            prefix: "shoal".into(),
            xdp: XdpMode::Auto,
            tc: TcMode::Auto,
            flows_max: FLOWS_MAX,
        }
    }

    /// Name of the VXLAN device.
    pub(crate) fn vxlan_name(&self) -> String {
        let prefix: String = self.prefix.chars().take(12).collect();
        format!("{prefix}-vx")
    }

    /// What the names of the tasks' interfaces begin with.
    pub(crate) fn veth_prefix(&self) -> String {
        let prefix: String = self.prefix.chars().take(2).collect();
        format!("{prefix}v")
    }

    /// Alias of the host's side of a task's veth: names have 15 characters, aliases 255.
    pub(crate) fn alias(&self, task_id: &str) -> String {
        format!("{}:{task_id}", self.prefix)
    }

    /// Whether an alias is that of a task's interface of ours.
    pub(crate) fn is_alias(&self, alias: &str) -> bool {
        alias.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with(':'))
    }

    /// Name of the host's side of a task's veth.
    pub(crate) fn veth_name(&self, task_id: &str) -> String {
        let id: String = task_id.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        format!("{}{id}", self.veth_prefix())
    }
}

/// Whether and how the uplink gets an XDP program. Without one, TC does its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where it can, else not at all: generic XDP costs more than TC. Not on virtio
    /// and tun either, which show XDP packets whose checksum is not filled in yet, nor on a veth,
    /// whose far end may not take what XDP sends back, nor on a bond.
    #[default]
    Auto,
    /// In the driver, or loading fails. For a veth whose far end has an XDP program.
    Native,
    /// In the stack, for tests.
    Generic,
    /// Not at all.
    Off,
}

/// How programs are attached to TC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcMode {
    /// By tcx links where the kernel has them (6.6 and later), else by clsact filters.
    #[default]
    Auto,
    /// By tcx links, or loading fails.
    Tcx,
    /// By clsact filters.
    Clsact,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_carry_the_task() {
        let options = Options::new("/p", [127, 0, 0, 1].into());
        assert_eq!(options.vxlan_name(), "shoal-vx");
        assert_eq!(options.veth_name("abc-12"), "shvabc12");
        let long = options.veth_name("0123456789abcdefghijklmno");
        assert_eq!((long.as_str(), long.len()), ("shv0123456789ab", 15));
        let long = Options { prefix: "averylongprefixindeed".into(), ..options };
        assert!(long.vxlan_name().len() <= 15);
    }
}
