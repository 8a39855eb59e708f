//! The packet test bed: one case, run on the library and in the kernel, with the same answer.
//!
//! A [`Case`] is a hook, a packet, tables and what must come of them: verdict, bytes, counters,
//! remembered flows, the tunnel chosen. [`host`] runs it on `shoal-datapath` with tables in
//! memory, [`kernel`] through `BPF_PROG_TEST_RUN` with the real programs and maps.
//!
//! What the kernel's run cannot show by itself: the kernel neither puts a test packet in a tunnel
//! nor tells where a redirection leads nor lets a test tag it. With the global `TEST` set, the accessor in
//! `ebpf/programs` takes tunnel and tag from the control block and notes there which interface and
//! tunnel were chosen, besides calling the helpers. So reading the tunnel key, the tag and the
//! redirection itself are left to the tests with real hosts, and so are GSO and partial checksums.

pub mod cases;
pub mod host;
pub mod kernel;
pub mod nspp;
pub mod packet;
pub mod sizes;
pub mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use shoal_datapath::abi::{Counter, Flow, FlowKey};
use shoal_datapath::{Reason, Verdict};

use packet::Packet;
use world::World;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP at the uplink.
    IngressXdp,
    /// TC at the uplink.
    IngressTc,
    /// TC at the VXLAN device.
    MeshTc,
    /// TC at a task's veth.
    TaskTc,
}

/// What a packet's surroundings are, besides its bytes and the tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// The tunnel that it came in: number of the virtual network, outer source.
    pub tunnel: Option<(u32, Ipv4Addr)>,
    /// The frame was addressed to another host's MAC.
    pub other_host: bool,
    /// The VLAN that the frame was tagged for.
    pub vlan: Option<u16>,
    /// Segments that it stands for; 0 where nobody said.
    pub segments: u32,
    /// There is no room left before it.
    pub no_headroom: bool,
}

/// One packet, and what must come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// A fact.
    pub name: &'static str,
    /// Where it happens.
    pub hook: Hook,
    /// The packet.
    pub packet: Vec<u8>,
    /// Its surroundings.
    pub context: Context,
    /// The tables.
    pub world: World,
    /// What must come of it.
    pub expected: Outcome,
}

/// What came of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the hook did with it.
    pub verdict: Verdict,
    /// Its bytes after that.
    pub packet: Vec<u8>,
    /// The tunnel that a redirected packet leaves in.
    pub tunnel: Option<(u32, Ipv4Addr)>,
    /// Counters by reason that are not zero.
    pub reasons: BTreeMap<Reason, Counter>,
    /// Counters by service that are not zero.
    pub services: BTreeMap<u16, Counter>,
    /// All flows remembered.
    pub flows: BTreeMap<FlowKey, Flow>,
}

impl Case {
    /// A case that expects nothing yet but an untouched packet.
    pub fn new(hook: Hook, name: &'static str, packet: &Packet) -> Self {
        let world = World::new();
        let packet = packet.bytes();
        let expected = Outcome {
            verdict: Verdict::Pass,
            packet: packet.clone(),
            tunnel: None,
            reasons: BTreeMap::new(),
            services: BTreeMap::new(),
            flows: BTreeMap::new(),
        };
        Self { name, hook, packet, context: Context::default(), world, expected }
    }

    /// Changes the tables.
    #[must_use]
    pub fn when(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.world);
        self.expected.flows = self.world.flows.clone();
        self
    }

    /// The packet came in a tunnel.
    #[must_use]
    pub const fn through(mut self, vni: u32, from: Ipv4Addr) -> Self {
        self.context.tunnel = Some((vni, from));
        self
    }

    /// The frame was addressed to another host.
    #[must_use]
    pub const fn for_another_host(mut self) -> Self {
        self.context.other_host = true;
        self
    }

    /// The frame was tagged; 0 says a priority and no VLAN.
    #[must_use]
    pub const fn tagged(mut self, vlan: u16) -> Self {
        self.context.vlan = Some(vlan);
        self
    }

    /// The packet stands for several segments.
    #[must_use]
    pub const fn of_segments(mut self, segments: u32) -> Self {
        self.context.segments = segments;
        self
    }

    /// Nothing more fits before the packet.
    #[must_use]
    pub const fn without_headroom(mut self) -> Self {
        self.context.no_headroom = true;
        self
    }

    /// What the hook must do, and the reason that it must count.
    #[must_use]
    pub fn is(mut self, verdict: Verdict, reason: Reason) -> Self {
        self.expected.verdict = verdict;
        self.counts(reason)
    }

    /// A reason that is counted on top.
    #[must_use]
    pub fn counts(mut self, reason: Reason) -> Self {
        let counter = self.counter();
        self.expected.reasons.insert(reason, counter);
        self
    }

    /// The service whose counter grows.
    #[must_use]
    pub fn serves(mut self, service: u16) -> Self {
        let counter = self.counter();
        self.expected.services.insert(service, counter);
        self
    }

    /// What the packet must be afterwards.
    #[must_use]
    pub fn becomes(mut self, packet: &Packet) -> Self {
        self.expected.packet = packet.bytes();
        self
    }

    /// The tunnel that it must leave in.
    #[must_use]
    pub const fn leaves_through(mut self, vni: u32, to: Ipv4Addr) -> Self {
        self.expected.tunnel = Some((vni, to));
        self
    }

    /// A flow that must be remembered afterwards.
    #[must_use]
    pub fn remembers(mut self, (key, flow): (FlowKey, Flow)) -> Self {
        self.expected.flows.insert(key, flow);
        self
    }

    /// The number of bytes that the counters must show, where padding makes it another.
    #[must_use]
    pub fn of_bytes(mut self, bytes: u64) -> Self {
        for counter in self.expected.reasons.values_mut() {
            counter.bytes = bytes;
        }
        for counter in self.expected.services.values_mut() {
            counter.bytes = bytes;
        }
        self
    }

    fn counter(&self) -> Counter {
        let packets = u64::from(self.context.segments.max(1));
        Counter { packets, bytes: self.packet.len() as u64 }
    }
}

/// Runs all cases and says which ones came out differently, and how.
///
/// # Panics
/// When one did.
pub fn check(cases: &[Case], mut run: impl FnMut(&Case) -> Outcome) {
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let outcome = run(case);
            (outcome != case.expected).then(|| Difference { case, outcome: &outcome }.to_string())
        })
        .collect();
    let (failed, all) = (failures.len(), cases.len());
    assert!(failures.is_empty(), "{failed} of {all} cases failed:\n{}", failures.join("\n"));
}

/// A case and what came of it instead.
struct Difference<'c> {
    case: &'c Case,
    outcome: &'c Outcome,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (want, got) = (&self.case.expected, self.outcome);
        writeln!(f, "{:?}: {}", self.case.hook, self.case.name)?;
        if want.verdict != got.verdict {
            writeln!(f, "  verdict {:?}, not {:?}", got.verdict, want.verdict)?;
        }
        if want.tunnel != got.tunnel {
            writeln!(f, "  tunnel {:?}, not {:?}", got.tunnel, want.tunnel)?;
        }
        if want.reasons != got.reasons {
            writeln!(f, "  counted {:?}, not {:?}", got.reasons, want.reasons)?;
        }
        if want.services != got.services {
            writeln!(f, "  services {:?}, not {:?}", got.services, want.services)?;
        }
        if want.flows != got.flows {
            writeln!(f, "  flows {:?}, not {:?}", got.flows, want.flows)?;
        }
        if want.packet != got.packet {
            writeln!(f, "  {} bytes, {} expected", got.packet.len(), want.packet.len())?;
            let longest = want.packet.len().max(got.packet.len());
            for at in 0..longest {
                let (w, g) = (want.packet.get(at), got.packet.get(at));
                if w != g {
                    writeln!(f, "  byte {at}: {g:02x?}, not {w:02x?}")?;
                }
            }
        }
        Ok(())
    }
}
