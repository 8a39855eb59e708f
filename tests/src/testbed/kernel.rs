//! Runs a case in the kernel: the programs as they were built, real maps, `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{Array, ArrayOfMaps, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use shoal_datapath::abi::{
    Config, Counter, EndpointKey, Flow, FlowKey, Frontend, Mac, Ring, maps, programs,
};
use shoal_datapath::packet::{frontend_index, mapped};
use shoal_datapath::{Reason, Verdict};

use super::world::World;
use super::{Case, Hook, Outcome};

/// Where the build puts an object.
pub fn object(name: &str) -> PathBuf {
    crate::root().join("target/ebpf").join(name).with_extension("o")
}

/// Why nothing can be loaded on this machine; `None` when it can.
///
/// The one test asks what every case needs, so that a machine without the right says so once.
pub fn why_not() -> Option<String> {
    if !object("shoal").exists() {
        return Some("no target/ebpf/shoal.o: run `cargo xtask build-ebpf`".to_owned());
    }
    match Array::<MapData, u32>::create(1, 0) {
        Ok(_) => None,
        Err(error) => Some(format!("this process may not create BPF maps: {error}")),
    }
}

/// The datapath's programs with the maps of one test.
pub struct Loaded {
    ebpf: Ebpf,
    /// What the tables hold.
    world: Option<World>,
}

impl Loaded {
    /// Reads the object and creates its maps.
    ///
    /// * `test` - whether the accessors take and note in the control block what
    ///   `BPF_PROG_TEST_RUN` has no other place for.
    /// * `flows` - room for so many.
    ///
    /// # Errors
    /// No object, or no right to create maps.
    pub fn new(test: bool, flows: u32) -> Result<Self> {
        let test = u32::from(test);
        let ebpf = EbpfLoader::new()
            .override_global("TEST", &test, true)
            .map_max_entries(maps::FLOWS, flows)
            .load_file(object("shoal"))
            .context("cannot load target/ebpf/shoal.o")?;
        Ok(Self { ebpf, world: None })
    }

    /// The XDP program, loaded.
    ///
    /// # Errors
    /// The verifier's, with its log.
    pub fn xdp(&mut self) -> Result<&mut Xdp> {
        xdp(&mut self.ebpf, programs::INGRESS_XDP)
    }

    /// A TC program, loaded.
    ///
    /// # Errors
    /// The verifier's, with its log.
    pub fn tc(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        let name = match hook {
            Hook::IngressTc => programs::INGRESS_TC,
            Hook::MeshTc => programs::MESH_TC,
            Hook::TaskTc => programs::TASK_TC,
            Hook::IngressXdp => bail!("XDP is no TC program"),
        };
        tc(&mut self.ebpf, name)
    }

    /// Makes all tables hold this world and nothing else, and all counters zero.
    ///
    /// Rings are written where they differ from the world before, because each costs the kernel a
    /// grace period.
    ///
    /// # Errors
    /// The kernel's; a ring that is not there any more, which no case needs.
    pub fn fill(&mut self, world: &World) -> Result<()> {
        let old = self.world.replace(world.clone()).unwrap_or_else(World::empty);
        self.array::<Config>(maps::CONFIG)?.set(0, world.config, 0)?;
        let frontends = |world: &World| {
            let by_index = |(key, value): (&(_, _), &_)| (frontend_index(key.0, key.1), *value);
            world.frontends.iter().map(by_index).collect::<BTreeMap<u32, Frontend>>()
        };
        self.fill_array(maps::FRONTENDS, &frontends(&old), &frontends(world))?;
        self.fill_array(maps::BACKENDS, &wide(&old.backends), &wide(&world.backends))?;
        self.fill_array(maps::NODES, &wide(&old.nodes), &wide(&world.nodes))?;

        let served = world.addresses.iter().map(|address| (mapped(address.octets()), 1_u32));
        self.fill_hash(maps::ADDRESSES, served)?;
        let numbers = world.node_numbers.iter().map(|(address, number)| (*address, *number));
        self.fill_hash(maps::NODE_NUMBERS, numbers)?;
        let key = |mac: &Mac| EndpointKey { mac: *mac, pad: [0; 2] };
        let endpoints = world.endpoints.iter().map(|(mac, endpoint)| (key(mac), *endpoint));
        self.fill_hash(maps::ENDPOINTS, endpoints)?;
        self.fill_hash(maps::FLOWS, world.flows.iter().map(|(key, flow)| (*key, *flow)))?;

        self.fill_rings(&old, world)?;
        let reasons = Reason::ALL.iter().map(|reason| reason.index());
        self.clear_counters(maps::COUNTERS, reasons)?;
        self.clear_counters(maps::SERVICES, services(&old).chain(services(world)))
    }

    fn fill_rings(&mut self, old: &World, world: &World) -> Result<()> {
        let map = self.ebpf.map_mut(maps::RINGS).context("no rings")?;
        let mut rings: ArrayOfMaps<_, Array<MapData, Ring>> = ArrayOfMaps::try_from(map)?;
        for (service, slots) in &world.rings {
            if old.rings.get(service) != Some(slots) {
                let slots = slots.as_slice().try_into().context("a ring has a fixed size")?;
                let mut inner = Array::<MapData, Ring>::create(1, 0)?;
                inner.set(0, Ring { slots }, 0)?;
                rings.set(u32::from(*service), &inner, 0)?;
            }
        }
        let gone = old.rings.keys().find(|service| !world.rings.contains_key(service));
        gone.map_or(Ok(()), |service| bail!("the ring of service {service} cannot go"))
    }

    fn fill_array<V: aya::Pod + Default>(
        &mut self,
        name: &str,
        old: &BTreeMap<u32, V>,
        new: &BTreeMap<u32, V>,
    ) -> Result<()> {
        let mut map = self.array::<V>(name)?;
        for gone in old.keys().filter(|key| !new.contains_key(key)) {
            map.set(*gone, V::default(), 0)?;
        }
        for (key, value) in new {
            map.set(*key, *value, 0)?;
        }
        Ok(())
    }

    fn fill_hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
        new: impl Iterator<Item = (K, V)>,
    ) -> Result<()> {
        let mut map = self.hash::<K, V>(name)?;
        let old: Vec<K> = map.keys().collect::<Result<_, _>>()?;
        for key in old {
            map.remove(&key)?;
        }
        for (key, value) in new {
            map.insert(key, value, 0)?;
        }
        Ok(())
    }

    fn clear_counters(&mut self, name: &str, keys: impl Iterator<Item = u32>) -> Result<()> {
        let cpus = nr_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut counters = PerCpuArray::<_, Counter>::try_from(map)?;
        for key in keys {
            counters.set(key, PerCpuValues::try_from(vec![Counter::default(); cpus])?, 0)?;
        }
        Ok(())
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }

    fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Ok(HashMap::try_from(map)?)
    }

    /// Sum of a counter over all CPUs; `None` when it is zero.
    fn counter(&self, map: &str, index: u32) -> Result<Option<Counter>> {
        let map = self.ebpf.map(map).with_context(|| format!("no map {map}"))?;
        let counters = PerCpuArray::<_, Counter>::try_from(map)?;
        let mut sum = Counter::default();
        for counter in counters.get(&index, 0)?.iter() {
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
        }
        Ok((sum != Counter::default()).then_some(sum))
    }

    fn outcome(&mut self, case: &Case, run: Run) -> Result<Outcome> {
        let mut reasons = BTreeMap::new();
        for reason in Reason::ALL {
            if let Some(counter) = self.counter(maps::COUNTERS, reason.index())? {
                reasons.insert(*reason, counter);
            }
        }
        let mut services = BTreeMap::new();
        for service in self::services(&case.world) {
            if let Some(counter) = self.counter(maps::SERVICES, service)? {
                services.insert(u16::try_from(service)?, counter);
            }
        }
        let flows = self.hash::<FlowKey, Flow>(maps::FLOWS)?;
        let flows = flows.iter().collect::<Result<BTreeMap<_, _>, _>>()?;
        let Run { verdict, packet, tunnel } = run;
        Ok(Outcome { verdict, packet, tunnel, reasons, services, flows })
    }
}

/// Loads a program, with the verifier's log on failure.
pub(super) fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    let Program::Xdp(program) = program else { bail!("{name} is not for XDP") };
    if program.fd().is_err() {
        program.load().with_context(|| format!("cannot load {name}"))?;
    }
    Ok(program)
}

/// Loads a program, with the verifier's log on failure.
pub(super) fn tc<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    let Program::SchedClassifier(program) = program else { bail!("{name} is not for TC") };
    if program.fd().is_err() {
        program.load().with_context(|| format!("cannot load {name}"))?;
    }
    Ok(program)
}

/// Bytes of a page.
const PAGE: usize = 4096;

/// Whether the kernel takes the case's packet at all: in TC it wants an IPv4 frame to have a whole
/// IPv4 header (XDP's cases have those cuts) and to fit a page with what the kernel keeps there.
pub fn takes(case: &Case) -> bool {
    let short = case.packet.len() < 14 + 20 && case.packet.get(12..14) == Some(&[0x08, 0x00]);
    case.hook == Hook::IngressXdp || !(short || case.packet.len() > PAGE / 2)
}

/// Runs a case, with the tables that it says and none of what ran before.
///
/// # Errors
/// What the kernel refuses: a load, a map, the run itself.
pub fn run(loaded: &mut Loaded, case: &Case) -> Result<Outcome> {
    loaded.fill(&case.world)?;
    let run = match case.hook {
        Hook::IngressXdp => run_xdp(loaded.xdp()?, case)?,
        hook => run_tc(loaded.tc(hook)?, case)?,
    };
    loaded.outcome(case, run)
}

/// Numbers of the services that any frontend stands for.
fn services(world: &World) -> impl Iterator<Item = u32> {
    world.frontends.values().map(|frontend| u32::from(frontend.service))
}

/// A table by the numbers that its map takes.
fn wide<V: Copy>(table: &BTreeMap<u16, V>) -> BTreeMap<u32, V> {
    table.iter().map(|(number, value)| (u32::from(*number), *value)).collect()
}

/// What the run itself shows.
struct Run {
    verdict: Verdict,
    packet: Vec<u8>,
    tunnel: Option<(u32, Ipv4Addr)>,
}

/// Most that a driver's metadata may take of the room before a packet.
const METADATA: usize = 212;

fn run_xdp(program: &Xdp, case: &Case) -> Result<Run> {
    // Metadata lies before the packet and takes the room that the program wants.
    let metadata = if case.context.no_headroom { METADATA } else { 0 };
    let mut input = vec![0_u8; metadata];
    input.extend(&case.packet);
    // `struct xdp_md`: where the packet starts and ends behind the metadata, then nothing.
    let mut context = [0_u8; 24];
    context[0..4].copy_from_slice(&u32::try_from(metadata)?.to_ne_bytes());
    context[4..8].copy_from_slice(&u32::try_from(input.len())?.to_ne_bytes());
    let mut output = vec![0_u8; input.len() + 256];
    let result = program.test_run(TestRunOptions {
        data_in: Some(&input),
        data_out: Some(&mut output),
        ctx_in: (metadata > 0).then_some(&context[..]),
        ..TestRunOptions::default()
    })?;
    let verdict = match result.return_value {
        1 => Verdict::Drop,
        2 => Verdict::Pass,
        3 => Verdict::Transmit,
        other => bail!("XDP answered {other}"),
    };
    output.truncate(usize::try_from(result.data_size_out)?);
    Ok(Run { verdict, packet: output.split_off(metadata), tunnel: None })
}

/// `struct __sk_buff`, as far as a test run takes and gives it.
pub(super) struct Context([u8; 192]);

/// Offset of the control block.
const CONTROL: usize = 48;
/// Offset of the number of segments.
const SEGMENTS: usize = 164;
/// Offset of the size of a segment.
const SEGMENT_SIZE: usize = 176;

impl Context {
    /// The surroundings of a case.
    pub(super) fn new(context: super::Context) -> Self {
        let mut new = Self([0; 192]);
        if let Some((vni, from)) = context.tunnel {
            new.set(CONTROL, vni);
            new.set(CONTROL + 4, from.to_bits());
        }
        let tag = context.vlan.map_or(0, |vlan| u32::from(vlan) << 16 | 2);
        new.set(CONTROL + 16, tag | u32::from(context.other_host));
        if context.segments > 0 {
            new.set(SEGMENTS, context.segments);
            new.set(SEGMENT_SIZE, 8);
        }
        new
    }

    /// The bytes that the kernel takes.
    pub(super) const fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn set(&mut self, at: usize, word: u32) {
        self.0[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    fn control(&self, word: usize) -> u32 {
        let at = CONTROL + 4 * word;
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

/// TC's answer "whoever comes next", minus one.
pub(super) const TC_UNSPEC: u32 = u32::MAX;

fn run_tc(program: &SchedClassifier, case: &Case) -> Result<Run> {
    let context = Context::new(case.context);
    let mut after = Context([0; 192]);
    let mut output = vec![0_u8; case.packet.len() + 256];
    let result = program.test_run(TestRunOptions {
        data_in: Some(&case.packet),
        data_out: Some(&mut output),
        ctx_in: Some(&context.0),
        ctx_out: Some(&mut after.0),
        ..TestRunOptions::default()
    })?;
    let interface = after.control(3);
    let verdict = match (result.return_value, after.control(2)) {
        (TC_UNSPEC, 0) => Verdict::Pass,
        (2, 0) => Verdict::Drop,
        (7, 1) => Verdict::Redirect(interface),
        (7, 2) => Verdict::Peer(interface),
        (7, 3) => Verdict::Neighbour(interface),
        (answer, kind) => bail!("TC answered {answer} and noted {kind}"),
    };
    let tunnel = matches!(verdict, Verdict::Redirect(_))
        .then(|| (after.control(0), Ipv4Addr::from_bits(after.control(1))));
    output.truncate(usize::try_from(result.data_size_out)?);
    Ok(Run { verdict, packet: output, tunnel })
}
