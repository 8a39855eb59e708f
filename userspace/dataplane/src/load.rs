//! Puts maps and programs into the kernel, or takes over those of the last process.
//!
//! 1. Privileges, pin folder, uplink: what cannot work is said before anything is made.
//! 2. Maps: pinned ones of this ABI are used as they are, with all flows. Those of another ABI are
//!    put aside; the programs attached keep forwarding with them until the first plan has filled
//!    the new maps, then all links change over.
//! 3. Programs: loaded anew and swapped under the pinned links, without a gap.

use std::path::Path;

use aya::maps::{Array, MapData};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use shoal_datapath::abi::{ABI_VERSION, Config, maps, programs};
use shoal_routing::Plan;
use shoal_routing::plan::address_bytes;
use tracing::{debug, info, warn};

use crate::addresses::Addresses;
use crate::error::{Error, LoadError};
use crate::links::{Links, detach_clsact, task_link};
use crate::neighbours::Neighbours;
use crate::net::{Interface, Net, errno, failed};
use crate::nodes::Nodes;
use crate::options::Options;
use crate::pins::Pins;
use crate::tables::{Tables, take};
use crate::vlan;

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
        let links = Links::new(pins.clone(), options.tc);
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

/// What a start finds.
enum Before {
    /// No packet is forwarded.
    Nothing,
    /// Packets may be forwarded, with this configuration if it is of this release.
    Forwarding(Option<Config>),
}

impl Before {
    /// A clsact filter has no pin that would tell, so maps that were given a plan count as well.
    fn find(pins: &Pins) -> Result<Self, Error> {
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
fn put_back(pins: &Pins, config: Config) {
    let map = open_config(&pins.maps().join(maps::CONFIG));
    if let Some(Err(error)) = map.map(|mut map| map.set(0, config, 0)) {
        warn!(%error, "a failed start left its configuration to what forwards");
    }
}

/// Removes what a failed first start made. Tasks' interfaces are none of it: they may be those of a
/// daemon whose pins were lost.
async fn undo(pins: &Pins, options: &Options, uplink: &Interface) {
    let undone = async {
        vlan::restore(pins, uplink);
        pins.remove_all()?;
        detach_clsact(&uplink.name);
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

/// Decides about pinned maps. True: those of another release are put aside and still forward.
fn make_room(pins: &Pins) -> Result<bool, LoadError> {
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

async fn find_uplink(net: &Net, options: &Options) -> Result<Interface, LoadError> {
    let addresses = net.addresses().await?;
    let holder = addresses.iter().find(|(_, address)| *address == options.data_path_addr);
    let found = match (&options.uplink, holder) {
        (Some(name), _) => net
            .by_name(name)
            .await?
            .ok_or_else(|| LoadError::Uplink(format!("interface {name} does not exist")))?,
        (None, Some((index, _))) => net
            .by_index(*index)
            .await?
            .ok_or_else(|| LoadError::Uplink(format!("interface {index} went away")))?,
        (None, None) => {
            let address = options.data_path_addr;
            return Err(LoadError::Uplink(format!("no interface has the address {address}")));
        }
    };
    if found.mac.is_none() {
        let name = found.name;
        return Err(LoadError::Uplink(format!("interface {name} is no Ethernet interface")));
    }
    Ok(found)
}

/// Why the VXLAN device could not be made or used.
fn vxlan_failed(error: rtnetlink::Error, options: &Options, what: &'static str) -> LoadError {
    match errno(&error) {
        Some(libc::EEXIST | libc::EADDRINUSE) => LoadError::VxlanPort { port: options.vxlan_port },
        _ => failed(&options.vxlan_name(), what)(error).into(),
    }
}

/// The VXLAN device, found or made. It is up only where its program has been attached.
async fn vxlan_device(net: &Net, options: &Options) -> Result<Interface, LoadError> {
    let name = options.vxlan_name();
    let port = options.vxlan_port;
    let mut device = net.by_name(&name).await?;
    if let Some(found) = &device {
        match found.vxlan {
            Some((held, true)) if held == port => {}
            Some((_, true)) => {
                net.remove(found.index).await?;
                device = None;
            }
            _ => {
                let alias = found.alias.clone();
                return Err(Error::Taken { interface: name, alias }.into());
            }
        }
    }
    if device.is_none() {
        let made = net.add_vxlan(&name, port).await;
        made.map_err(|error| vxlan_failed(error, options, "make it"))?;
        device = net.by_name(&name).await?;
    }
    let device = device.ok_or_else(|| Error::Missing { interface: name.clone() })?;
    if let Err(error) = net.no_own_address(device.index).await {
        debug!(%error, interface = %name, "the kernel gives it an IPv6 address of its own");
    }
    Ok(device)
}
