//! Puts maps and programs into the kernel, or takes over those of the last process.
//!
//! 1. Privileges, pin folder, uplink: what cannot work is said before anything is made.
//! 2. Maps: pinned ones of this ABI are used as they are, with all flows. Those of another ABI are
//!    put aside; the programs attached keep forwarding with them until the first plan has filled
//!    the new maps, then all links change over.
//! 3. Programs: loaded anew and swapped under the pinned links, without a gap.

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use shoal_datapath::abi::{ABI_VERSION, Config, maps, programs};
use shoal_routing::Plan;
use shoal_routing::plan::address_bytes;
use tracing::{debug, info, warn};

use crate::addresses::Addresses;
use crate::error::{Error, LoadError};
use crate::interfaces::{find_uplink, vxlan_device, vxlan_failed};
use crate::links::{Links, task_link};
use crate::neighbours::Neighbours;
use crate::net::{Interface, Net};
use crate::nodes::Nodes;
use crate::options::Options;
use crate::pins::Pins;
use crate::tables::{Tables, take};
use crate::takeover::{Before, make_room, put_back, undo};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shoal.o"));

/// Names of the pinned links, without the interface's index.
const UPLINK_LINK: &str = "uplink-tc";
const VXLAN_LINK: &str = "vxlan-tc";

/// One node's data plane: programs, maps and tasks' interfaces.
///
/// Dropping it leaves everything in the kernel: forwarding goes on.
pub struct Dataplane {
    pub(crate) options: Options,
    pub(crate) ebpf: Ebpf,
    pub(crate) tables: Tables,
    pub(crate) neighbours: Neighbours,
    pub(crate) net: Net,
    pub(crate) links: Links,
    pub(crate) uplink: Interface,
    /// What the kernel holds; unknown at first and after a failed write.
    pub(crate) held: Option<Plan>,
    /// What was asked for last.
    pub(crate) wanted: Option<Plan>,
    pub(crate) repaired: u64,
    /// Whether the plan publishes the mesh's own port: said once.
    pub(crate) own_port_wanted: bool,
    /// While the maps of another release still forward.
    pub(crate) changing_over: bool,
    vxlan: Interface,
    pub(crate) pins: Pins,
    xdp: &'static str,
}

impl Dataplane {
    /// Loads, or takes over what is pinned.
    ///
    /// Must be called, and used, in the network namespace that it is for, on a tokio runtime.
    ///
    /// # Errors
    /// [`LoadError`] says what is missing and what to do; what forwarded before forwards on.
    pub async fn load(options: Options) -> Result<Self, LoadError> {
        check_privileges()?;
        // Kernels before 5.11 count maps against this limit; later ones do not care.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            debug!(%error, "cannot raise the limit of locked memory");
        }
        let net = Net::open().map_err(Error::io("open a netlink socket"))?;
        let uplink = find_uplink(&net, &options).await?;
        let pins = Pins::open(&options.pin_dir)?;
        let before = Before::find(&pins)?;
        let interfaces = (net, uplink.clone());
        let result = Self::load_into(&pins, options.clone(), interfaces).await;
        if result.is_err() {
            // Nothing half-made stays of a first start. What forwarded before forwards on.
            match before {
                Before::Nothing => undo(&pins, &options, &uplink).await,
                Before::Forwarding(config) => config.iter().for_each(|config| {
                    put_back(&pins, *config);
                }),
            }
        }
        result
    }

    async fn load_into(
        pins: &Pins,
        options: Options,
        (net, uplink): (Net, Interface),
    ) -> Result<Self, LoadError> {
        let changing_over = make_room(pins)?;
        let mut ebpf = load_object(pins, &options)?;
        let vxlan = vxlan_device(&net, &options).await?;

        let mut tables = Tables::take(&mut ebpf, &pins.maps())?;
        let held = tables.config()?;
        tables.put_config(config(&options, &uplink, &vxlan, held.node))?;
        let nodes = take(&mut ebpf, maps::NODES)?;
        let numbers = take(&mut ebpf, maps::NODE_NUMBERS)?;
        let serving = take(&mut ebpf, maps::ADDRESSES)?;
        let serving = Addresses::new(serving, options.data_path_addr, uplink.index);
        let neighbours = Neighbours::start(Nodes::open(nodes, numbers)?, serving);
        let links = Links::new(pins.clone(), &options);
        let mut dataplane = Self {
            options,
            ebpf,
            tables,
            neighbours,
            net,
            links,
            uplink,
            held: None,
            wanted: None,
            repaired: 0,
            own_port_wanted: false,
            changing_over,
            vxlan,
            pins: pins.clone(),
            xdp: "off",
        };
        dataplane.neighbours.refresh_addresses(&dataplane.net).await?;
        if !dataplane.changing_over {
            dataplane.attach_all().await?;
        }
        Ok(dataplane)
    }

    /// How often the kernel was found to hold something else than it was given, in steps.
    #[must_use]
    pub fn repaired(&self) -> u64 {
        self.repaired
    }

    /// Packets and bytes that clients sent to one service through this node.
    ///
    /// # Errors
    /// The counter could not be read.
    pub fn service_counter(&self, service: u16) -> Result<(u64, u64), Error> {
        self.tables.service_counter(service)
    }

    /// Attaches every program, swapping those that are attached: tasks and tunnel first, so that
    /// no packet comes in before it could be delivered. Returns how many were not attached.
    pub(crate) async fn attach_all(&mut self) -> Result<usize, LoadError> {
        let tasks = self.task_interfaces().await?;
        if self.changing_over {
            self.adopt_endpoints(&tasks);
        }
        self.sweep_endpoints().await?;
        let ebpf = &mut self.ebpf;
        let mut anew = 0;
        for interface in tasks {
            let link = task_link(&interface.name);
            match self.links.attach_tc(ebpf, programs::TASK_TC, &link, &interface) {
                Ok(new) => anew += usize::from(new),
                Err(error) if self.net.by_index(interface.index).await?.is_some() => {
                    return Err(error.into());
                }
                Err(error) => debug!(%error, "a task ended meanwhile"),
            }
        }
        anew +=
            usize::from(self.links.attach_tc(ebpf, programs::MESH_TC, VXLAN_LINK, &self.vxlan)?);
        // Not before: without the program, what anyone sends to the port would reach the stack as
        // a neighbour's packet.
        let up = self.net.set_up(self.vxlan.index).await;
        up.map_err(|error| vxlan_failed(error, &self.options, "set it up"))?;
        anew += usize::from(self.links.attach_tc(
            ebpf,
            programs::INGRESS_TC,
            UPLINK_LINK,
            &self.uplink,
        )?);
        let (xdp, new) = self.links.attach_xdp(ebpf, self.options.xdp, &self.uplink)?;
        self.xdp = xdp;
        anew += usize::from(new);
        if self.changing_over {
            self.pins.forget_old()?;
            self.changing_over = false;
        }
        if anew > 0 {
            info!(anew, choices = ?self.chosen(), "data plane attached");
        }
        Ok(anew)
    }

    /// Finds the uplink and the tunnel again: one may have been made anew, under another index.
    /// Then attaches what is not attached there.
    pub(crate) async fn refresh_interfaces(&mut self) -> Result<usize, LoadError> {
        let before = (self.uplink.index, self.vxlan.index);
        self.uplink = find_uplink(&self.net, &self.options).await?;
        self.vxlan = vxlan_device(&self.net, &self.options).await?;
        if before != (self.uplink.index, self.vxlan.index) {
            warn!(uplink = %self.uplink.name, vxlan = %self.vxlan.name, "an interface is another");
            self.neighbours.serve_addresses_of(self.uplink.index).await;
            let node = self.tables.config()?.node;
            self.tables.put_config(config(&self.options, &self.uplink, &self.vxlan, node))?;
        }
        if self.changing_over { Ok(0) } else { self.attach_all().await }
    }

    pub(crate) fn chosen(&self) -> Vec<(String, String)> {
        let tc = self.links.tc().map_or("not attached yet", crate::links::Tc::word);
        let pairs = [
            ("xdp", self.xdp.to_owned()),
            ("tc", tc.to_owned()),
            ("uplink", self.uplink.name.clone()),
            ("vxlan", format!("{} port {}", self.vxlan.name, self.options.vxlan_port)),
            ("abi", ABI_VERSION.to_string()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Needs what the calls need, not a certain user.
fn check_privileges() -> Result<(), LoadError> {
    // CAP_SYS_ADMIN, the older one, stands for CAP_BPF, too.
    const NEEDED: [(u64, &str); 2] = [(1 << 12, "CAP_NET_ADMIN"), (1 << 39 | 1 << 21, "CAP_BPF")];
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(Error::io("read /proc/self/status"))?;
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    match NEEDED.iter().find(|(any_of, _)| held & any_of == 0) {
        Some((_, missing)) => Err(LoadError::Privilege { missing }),
        None => Ok(()),
    }
}

fn config(options: &Options, uplink: &Interface, vxlan: &Interface, node: u16) -> Config {
    Config {
        abi: ABI_VERSION,
        uplink: uplink.index,
        vxlan: vxlan.index,
        vxlan_port: options.vxlan_port,
        node,
        address: address_bytes(options.data_path_addr),
    }
}

fn load_object(pins: &Pins, options: &Options) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    for name in maps::ALL {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    loader.map_max_entries(maps::FLOWS, options.flows_max);
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| LoadError::Feature { feature: "hold the maps", cause: error.into() })?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => {
                debug!(name, "a program that is not ours to load");
                Ok(())
            }
        };
        loaded.map_err(|error| LoadError::Feature {
            feature: "run the programs",
            cause: Box::new(Error::Program { name: name.to_owned(), cause: error }),
        })?;
    }
    Ok(ebpf)
}
