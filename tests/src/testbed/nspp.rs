//! Nanoseconds per packet of each program, above a program that does nothing.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on one packet without restoring it, so a prelude does
//! that before each run and calls the program; the same prelude before the empty program is what
//! is taken off. Rounds are interleaved, so that whatever else the machine does hits all alike.
//! TC's figures hold a few nanoseconds of notes for the test bed, and instead of the helper that
//! reads a tunnel's key a look into the control block.

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use shoal_datapath::abi::{Flow, NO_ALTERNATE, VNI_INGRESS, VNI_RETURN};
use shoal_datapath::packet::{Protocol, mapped};

use super::kernel::{self, Loaded, TC_UNSPEC, object};
use super::packet::{Packet, frame};
use super::world::{
    CLIENT, GATEWAY_MAC, HERE, REMOTE_MAC, ROUTER_MAC, TASK, TASK_MAC, THERE, UPLINK_MAC, World,
    flow,
};
use super::{Context, Hook};

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds, of which the smallest and the middle one are told.
    pub rounds: usize,
    /// Packets per round.
    pub packets: u32,
}

impl Default for Effort {
    fn default() -> Self {
        Self { rounds: 11, packets: 200_000 }
    }
}

/// What a program costs.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Program and what it does with the packet.
    pub name: &'static str,
    /// Clients that take turns.
    pub flows: u32,
    /// Smallest round, in nanoseconds above the empty program's smallest.
    pub min_ns: i64,
    /// Middle round, in nanoseconds above the empty program's middle.
    pub median_ns: i64,
    /// What the kernel must answer.
    answer: u32,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, flows, min_ns, median_ns, .. } = self;
        write!(f, "{name:<36} {flows:>6} {min_ns:>8} {median_ns:>8}")
    }
}

/// Flows that are measured.
const FLOWS: [u32; 3] = [1, 1 << 10, 1 << 16];

/// A program and the packet it is measured with.
struct Subject {
    name: &'static str,
    hook: Hook,
    packet: Packet,
    context: Context,
    is_reply: bool,
    /// Number of the ingress node of the flows that are there before; 0 for none.
    ingress_node: u16,
    /// What the kernel answers when the program did what it is measured for.
    answer: u32,
}

/// Answers of XDP and TC.
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const TC_REDIRECT: u32 = 7;

fn subjects() -> Vec<Subject> {
    let request =
        |port| frame(UPLINK_MAC, ROUTER_MAC).ipv4(CLIENT, HERE).tcp(40_000, port).payload(&[7; 64]);
    let inner = frame(TASK_MAC, NO_ALTERNATE).ipv4(CLIENT, THERE);
    let outward = frame(GATEWAY_MAC, REMOTE_MAC).ipv4(HERE, CLIENT);
    let reply = frame(GATEWAY_MAC, TASK_MAC).ipv4(TASK, CLIENT).tcp(90, 40_000).payload(&[7; 64]);
    let through = |vni| Context { tunnel: Some((vni, THERE)), ..Context::default() };
    let plain = |name, hook, packet, answer| Subject {
        name,
        hook,
        packet,
        context: Context::default(),
        is_reply: false,
        ingress_node: 0,
        answer,
    };
    vec![
        plain("ingress_xdp: to a remote task", Hook::IngressXdp, request(8080), XDP_TX),
        plain("ingress_xdp: to a local task, passed", Hook::IngressXdp, request(9090), XDP_PASS),
        plain("ingress_xdp: not published, passed", Hook::IngressXdp, request(22), XDP_PASS),
        plain("ingress_tc: to a remote task", Hook::IngressTc, request(8080), TC_REDIRECT),
        plain("ingress_tc: to a local task", Hook::IngressTc, request(9090), TC_REDIRECT),
        plain("ingress_tc: not published, passed", Hook::IngressTc, request(22), TC_UNSPEC),
        Subject {
            context: through(VNI_INGRESS),
            ..plain(
                "mesh_tc: request to its task",
                Hook::MeshTc,
                inner.tcp(40_000, 9090).payload(&[7; 64]),
                TC_REDIRECT,
            )
        },
        Subject {
            context: through(VNI_RETURN),
            is_reply: true,
            ..plain(
                "mesh_tc: reply to its client",
                Hook::MeshTc,
                outward.tcp(8080, 40_000).payload(&[7; 64]),
                TC_REDIRECT,
            )
        },
        Subject {
            is_reply: true,
            ingress_node: 2,
            ..plain("task_tc: reply into the tunnel", Hook::TaskTc, reply.clone(), TC_REDIRECT)
        },
        Subject {
            is_reply: true,
            ingress_node: 1,
            ..plain("task_tc: reply straight out", Hook::TaskTc, reply, TC_REDIRECT)
        },
    ]
}

/// Measures all programs.
///
/// # Errors
/// No right to load programs, or a program that does not do what it is measured for.
pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    ensure!(effort.rounds > 0 && effort.packets > 0, "nothing to measure");
    let subjects = subjects();
    let mut rigs = Vec::new();
    for subject in &subjects {
        for flows in FLOWS {
            rigs.push(Rig::new(subject, flows).with_context(|| subject.name)?);
        }
    }
    let mut samples = vec![[Vec::new(), Vec::new()]; rigs.len()];
    for _ in 0..effort.rounds {
        for (rig, [empty, own]) in rigs.iter_mut().zip(&mut samples) {
            empty.push(rig.time(Which::Empty, effort.packets)?);
            own.push(rig.time(Which::Subject, effort.packets)?);
        }
    }
    let figures = rigs.iter().zip(samples).map(|(rig, [mut empty, mut own])| {
        empty.sort_unstable();
        own.sort_unstable();
        let middle = effort.rounds / 2;
        let mut figure = rig.figure.clone();
        figure.min_ns = own[0] - empty[0];
        figure.median_ns = own[middle] - empty[middle];
        figure
    });
    Ok(figures.collect())
}

/// Which program the prelude calls.
#[derive(Clone, Copy)]
enum Which {
    Empty,
    Subject,
}

/// What the prelude restores: `State` of the bench object.
#[repr(C)]
#[derive(Clone, Copy)]
struct State {
    head: [u8; 64],
    note: [u32; 2],
    runs: u32,
    pad: u32,
}

#[allow(unsafe_code, reason = "aya's marker for plain bytes is an unsafe trait")]
mod plain {
    // SAFETY: `repr(C)`, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for super::State {}
}

/// One subject with its maps and its prelude, ready to run.
struct Rig {
    figure: Figure,
    hook: Hook,
    bytes: Vec<u8>,
    context: kernel::Context,
    bench: Ebpf,
    under_test: ProgramArray<aya::maps::MapData>,
    empty: ProgramFd,
    subject: ProgramFd,
    /// Holds the subject's maps.
    _loaded: Loaded,
}

impl Rig {
    fn new(subject: &Subject, flows: u32) -> Result<Self> {
        let mut loaded = Loaded::new(true, 2 * flows.max(1 << 10))?;
        loaded.fill(&world(subject, flows))?;
        let bytes = subject.packet.bytes();
        let length = u32::try_from(bytes.len())?;
        let (mask, reply) = (flows - 1, u32::from(subject.is_reply));
        let mut bench = EbpfLoader::new()
            .override_global("LENGTH", &length, true)
            .override_global("FLOW_MASK", &mask, true)
            .override_global("REPLY", &reply, true)
            .load_file(object("bench"))?;

        let note = subject.context.tunnel.map_or([0; 2], |(vni, from)| [vni, from.to_bits()]);
        let head = *bytes.first_chunk().context("the packet is shorter than what is restored")?;
        let map = bench.map_mut("STATE").context("no state")?;
        let mut state = Array::<_, State>::try_from(map)?;
        state.set(0, State { head, note, runs: 0, pad: 0 }, 0)?;

        let is_xdp = subject.hook == Hook::IngressXdp;
        let map = if is_xdp { "XDP_UNDER_TEST" } else { "TC_UNDER_TEST" };
        let under_test = ProgramArray::try_from(bench.take_map(map).context("no program array")?)?;
        let clone = |fd: &ProgramFd| fd.try_clone();
        let (empty, subject_fd) = if is_xdp {
            kernel::xdp(&mut bench, "prelude_xdp")?;
            let empty = clone(kernel::xdp(&mut bench, "empty_xdp")?.fd()?)?;
            (empty, clone(loaded.xdp()?.fd()?)?)
        } else {
            kernel::tc(&mut bench, "prelude_tc")?;
            let empty = clone(kernel::tc(&mut bench, "empty_tc")?.fd()?)?;
            (empty, clone(loaded.tc(subject.hook)?.fd()?)?)
        };
        let (name, answer) = (subject.name, subject.answer);
        Ok(Self {
            figure: Figure { name, flows, min_ns: 0, median_ns: 0, answer },
            hook: subject.hook,
            bytes,
            context: kernel::Context::new(subject.context),
            bench,
            under_test,
            empty,
            subject: subject_fd,
            _loaded: loaded,
        })
    }

    /// Mean nanoseconds of a packet.
    fn time(&mut self, which: Which, packets: u32) -> Result<i64> {
        let fd = match which {
            Which::Empty => &self.empty,
            Which::Subject => &self.subject,
        };
        self.under_test.set(0, fd, 0)?;
        let options = TestRunOptions {
            data_in: Some(&self.bytes),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let result = if self.hook == Hook::IngressXdp {
            kernel::xdp(&mut self.bench, "prelude_xdp")?.test_run(options)?
        } else {
            let context = Some(self.context.bytes());
            let options = TestRunOptions { ctx_in: context, ..options };
            kernel::tc(&mut self.bench, "prelude_tc")?.test_run(options)?
        };
        if let Which::Subject = which {
            let (got, want) = (result.return_value, self.figure.answer);
            ensure!(got == want, "{}: the program answered {got}, not {want}", self.figure.name);
        }
        Ok(i64::try_from(result.duration.as_nanos())?)
    }
}

/// The tables, with the flows that replies need.
fn world(subject: &Subject, flows: u32) -> World {
    let mut world = World::new();
    if subject.ingress_node == 0 {
        return world;
    }
    let frontend = if subject.ingress_node == 1 { HERE } else { THERE };
    let (key, value) = flow(Protocol::Tcp, 90, frontend, 9090, subject.ingress_node);
    for number in 0..flows {
        // As the prelude does: the high byte in the address, the low one in the port.
        let [.., high, low] = number.to_be_bytes();
        let [a, b, c, _] = CLIENT.octets();
        let mut key = key;
        key.client = mapped([a, b, c, high]);
        key.client_port = (40_000 & 0xff00 | u16::from(low)).to_be();
        let value = Flow { client_port: key.client_port, ..value };
        world.flows.insert(key, value);
    }
    world
}
