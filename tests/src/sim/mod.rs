//! A whole cluster under a seed, with Raft in it: the real control plane and store under the real
//! openraft, on virtual time, on simulated disks and a simulated network.
//!
//! One thread runs all: managers, agents, clients, and the chaos that crashes hosts, cuts the
//! network, slows disks and sets clocks. Each run has three phases: safety under faults, then all is
//! healed, then the cluster must come to rest. The promises are in `invariants`, one in a file;
//! `history` checks what clients were told for linearizability, `converged` the end. A seed is a run,
//! to the microsecond: `cargo xtask sim --seed 17` repeats it and tells what happened.
//!
//! Not in it: TLS, gRPC, redb (the manager's own tests have these), and the data plane.

mod agent;
mod chaos;
mod client;
mod clock;
mod converged;
mod desk;
mod dice;
mod disk;
mod front;
mod history;
mod host;
mod invariants;
mod leader;
mod log_store;
mod machine;
mod manager;
mod members;
mod network;
mod raft_net;
mod trace;
mod types;
mod world;

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use shoal_api::NodeRole;

use self::manager::Start;
use self::world::{HOSTS, World};

pub use self::world::Seen;

/// Clients of a run.
const USERS: u32 = 3;

/// How a run differs from the product: all `false` is the product. A run with a broken rule must
/// break an invariant, or the invariant is worth nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Disks of these hosts (bits, the first host is bit 0) say that they have synced and have not.
    pub lying_disks: u32,
    /// A vote is not written to the disk.
    pub forgets_vote: bool,
    /// The leader's loop answers before its batch is committed.
    pub answers_before_commit: bool,
    /// The leader's loop refuses before what it refuses for is committed.
    pub refuses_at_once: bool,
    /// Reads do not ask the leader first.
    pub reads_at_once: bool,
    /// The leader's loop goes on when leadership is lost, and proposes when it is back.
    pub never_steps_down: bool,
    /// Clients hardly wait, and all of them want the same name.
    pub hurried: bool,
    /// Nothing fails but the power of lying disks, one at a time and never the leader's.
    pub only_liars_fail: bool,
}

impl Rules {
    /// Whether the disk of a host lies.
    fn lies(&self, host: u32) -> bool {
        self.lying_disks & (1 << (host - 1)) != 0
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What was promised and did not hold, oldest first; empty when all is well.
    pub broken: Vec<String>,
    /// What happened.
    pub seen: Seen,
    /// Hash of all that happened: the same for the same seed.
    pub hash: u64,
    /// The newest lines of what happened.
    pub trace: Vec<String>,
}

/// Runs the cluster under a seed.
///
/// * `aloud` - prints what happens.
#[must_use]
pub fn run(seed: u64, rules: Rules, aloud: bool) -> Report {
    let mut runtime = SimRuntime::with_seed(seed);
    let world = World::new(seed, rules, aloud);
    runtime.block_on(live(world.clone()));
    let mut seen = world.seen.lock().clone();
    seen.dropped = world.net.dropped.load(std::sync::atomic::Ordering::Relaxed);
    seen.doubled = world.net.doubled.load(std::sync::atomic::Ordering::Relaxed);
    seen.committed = world.judge.chosen();
    let mut broken = world.judge.broken();
    broken.extend(world.histories.lock().broken());
    let (hash, trace) = (world.trace.hash(), world.trace.newest());
    world.end();
    drop(runtime);
    Report { seed, broken, seen, hash, trace }
}

async fn live(world: Arc<World>) {
    begin(&world).await;
    for host in world.hosts.values() {
        drop(SimRuntime::spawn(agent::run(world.clone(), host.clone())));
    }
    let clients: Vec<_> =
        (1..=USERS).map(|user| SimRuntime::spawn(client::run(world.clone(), user))).collect();
    let chaos = SimRuntime::spawn(chaos::run(world.clone()));
    let storm = world.dice.between_ms(12_000, 25_000);
    let mut left = storm;
    let tick = Duration::from_millis(250);
    while left > tick && world.judge.broken().is_empty() {
        SimRuntime::sleep(tick).await;
        left -= tick;
    }
    world.calm_down();
    world.trace.note(format_args!("all is healed"));
    chaos::heal(&world).await;
    for task in clients.into_iter().chain([chaos]) {
        if let Err(failure) = task.await {
            world.judge.complain(failure.to_string());
        }
    }
    // What was under way when it was healed may still have failed a host.
    SimRuntime::sleep(Duration::from_secs(6)).await;
    if world.judge.broken().is_empty() {
        converged::wait(&world).await;
        client::look_at_all(&world).await;
    }
}

/// A founder, and as many managers as the seed says.
async fn begin(world: &Arc<World>) {
    for (number, host) in &world.hosts {
        host.disk.set_sync_time(Duration::from_millis(2));
        host.disk.lie(world.rules.lies(*number));
    }
    let founder = world.hosts[&1].clone();
    let node_id = "n1x0".to_owned();
    let founding = world::founding(1, &node_id);
    let start = Start { node_id: node_id.clone(), raft_id: 1, founding: Some(founding) };
    {
        let mut state = founder.state.lock();
        state.node_id = Some(node_id);
        state.manager = Some(start.clone());
    }
    world.start(&founder, start).await;
    let managers = if world.dice.one_in(2) { 3 } else { HOSTS - 1 };
    for number in 2..HOSTS {
        let role = if number <= managers { NodeRole::Manager } else { NodeRole::Worker };
        chaos::join(world, &world.hosts[&number].clone(), role).await;
    }
}
