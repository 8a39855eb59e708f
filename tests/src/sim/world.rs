//! All hosts of a run, and what they share with the chaos, the clients and the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use parking_lot::Mutex;
use shoal_api::{JoinRequest, JoinTokens, NodeRole, NodeSpec, RootCa, SigningCa, token};
use shoal_control::Founding;

use super::Rules;
use super::dice::Dice;
use super::history::Histories;
use super::host::Host;
use super::invariants::Judge;
use super::manager::{self, Running, Start};
use super::network::Net;
use super::trace::Trace;
use super::types::Peer;

/// Hosts of a run: five managers bear two failures, and one more comes and goes.
pub(super) const HOSTS: u32 = 6;

/// What happened, so that a tame run is noticed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Leaders by term.
    pub leaders: BTreeMap<u64, u64>,
    /// Power failures.
    pub crashes: u64,
    /// Of these, of all hosts at once.
    pub blackouts: u64,
    /// Of these, with unsynced writes gone.
    pub lost_writes: u64,
    /// Of these, with a write stored in part.
    pub torn_writes: u64,
    /// Cuts of the network.
    pub partitions: u64,
    /// Of these, in one direction only.
    pub one_way: u64,
    /// Disks that became slow.
    pub slow_disks: u64,
    /// Clocks that jumped.
    pub jumps: u64,
    /// Steps of Raft's membership.
    pub member_changes: u64,
    /// Nodes that joined, were promoted, demoted, removed.
    pub node_changes: u64,
    /// Messages that did not arrive.
    pub dropped: u64,
    /// Messages that arrived twice.
    pub doubled: u64,
    /// Snapshots that a manager took over from the leader.
    pub snapshots: u64,
    /// Proposals that Raft did not take at once.
    pub waited: u64,
    /// Clients' writes that were acknowledged.
    pub stored: u64,
    /// That were refused.
    pub refused: u64,
    /// That nobody knows of.
    pub unknown: u64,
    /// That no leader took in time.
    pub not_taken: u64,
    /// Clients' reads that were answered.
    pub read: u64,
    /// Committed entries.
    pub committed: u64,
}

impl Seen {
    pub(super) fn led(&mut self, term: u64, raft_id: u64) {
        self.leaders.insert(term, raft_id);
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        let terms = self.leaders.len() as u64;
        let more = other.leaders.values().zip(terms + 1_000..);
        self.leaders.extend(more.map(|(leader, term)| (term, *leader)));
        self.crashes += other.crashes;
        self.blackouts += other.blackouts;
        self.lost_writes += other.lost_writes;
        self.torn_writes += other.torn_writes;
        self.partitions += other.partitions;
        self.one_way += other.one_way;
        self.slow_disks += other.slow_disks;
        self.jumps += other.jumps;
        self.member_changes += other.member_changes;
        self.node_changes += other.node_changes;
        self.dropped += other.dropped;
        self.doubled += other.doubled;
        self.snapshots += other.snapshots;
        self.waited += other.waited;
        self.stored += other.stored;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.not_taken += other.not_taken;
        self.read += other.read;
        self.committed += other.committed;
        self
    }
}

/// One run's everything.
pub(super) struct World {
    pub(super) rules: Rules,
    pub(super) dice: Dice,
    pub(super) trace: Trace,
    pub(super) judge: Judge,
    pub(super) net: Net,
    pub(super) seen: Mutex<Seen>,
    pub(super) histories: Mutex<Histories>,
    /// Service names that are in use.
    pub(super) names: Mutex<BTreeMap<u64, String>>,
    pub(super) hosts: BTreeMap<u32, Arc<Host>>,
    calm: AtomicBool,
    marks: AtomicU64,
}

impl World {
    pub(super) fn new(seed: u64, rules: Rules, aloud: bool) -> Arc<Self> {
        let dice = Dice::new(seed);
        // A quartz is off by some tens of a millionth; a starved machine is far worse.
        let rate = |dice: &Dice| 900_000 + dice.below(200_001);
        let hosts = (1..=HOSTS).map(|number| (number, Arc::new(Host::new(number, rate(&dice)))));
        Arc::new(Self {
            rules,
            hosts: hosts.collect(),
            dice,
            trace: Trace::new(aloud),
            judge: Judge::new(),
            net: Net::default(),
            seen: Mutex::default(),
            histories: Mutex::default(),
            names: Mutex::default(),
            calm: AtomicBool::new(false),
            marks: AtomicU64::new(0),
        })
    }

    /// Nothing unlikely happens any more.
    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub(super) fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// A number that no other spec carries.
    pub(super) fn mark(&self) -> u64 {
        self.marks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The manager on a host, if it runs.
    pub(super) fn running(&self, host: u32) -> Option<Arc<Running>> {
        self.hosts.get(&host)?.running.lock().clone().filter(|running| running.is_live())
    }

    pub(super) fn all_running(&self) -> Vec<Arc<Running>> {
        self.hosts.keys().filter_map(|host| self.running(*host)).collect()
    }

    /// Hosts that should run a manager, whether they do or not.
    pub(super) fn manager_hosts(&self) -> Vec<u32> {
        let is_manager = |host: &&Arc<Host>| host.state.lock().manager.is_some();
        self.hosts.values().filter(is_manager).map(|host| host.number).collect()
    }

    /// One that should run a manager.
    pub(super) fn any_host(&self) -> u32 {
        self.dice.pick(&self.manager_hosts()).unwrap_or(1)
    }

    /// The newest store that anyone holds.
    pub(super) fn newest(&self) -> Option<Arc<Running>> {
        self.all_running().into_iter().max_by_key(|running| running.view.applied())
    }

    /// A manager ends for good, its disk goes with it.
    pub(super) fn end_manager(&self, host: &Host) {
        host.state.lock().manager = None;
        let running = host.running.lock().take();
        host.disk.wipe();
        if let Some(running) = running {
            self.trace.note(format_args!("manager {} ends for good", running.raft_id));
            stop(&running);
        }
    }

    /// The host's node was removed: nothing of it is left.
    pub(super) fn leave(&self, host: &Host) {
        self.end_manager(host);
        host.state.lock().node_id = None;
    }

    pub(super) fn power_fails(&self, host: &Host) {
        {
            let mut state = host.state.lock();
            state.powered = false;
            state.boots += 1;
        }
        let running = host.running.lock().take();
        let loss = host.disk.power_fails(&self.dice);
        self.trace.note(format_args!("power of h{} fails: {loss:?}", host.number));
        let mut seen = self.seen.lock();
        seen.crashes += 1;
        seen.lost_writes += u64::from(loss.lost);
        seen.torn_writes += u64::from(loss.torn);
        drop(seen);
        if let Some(running) = running {
            stop(&running);
        }
    }

    pub(super) async fn power_on(self: &Arc<Self>, host: &Arc<Host>) {
        let start = {
            let mut state = host.state.lock();
            if state.powered {
                return;
            }
            state.powered = true;
            state.manager.clone()
        };
        self.trace.note(format_args!("power of h{} is back", host.number));
        if let Some(start) = start {
            self.start(host, start).await;
        }
    }

    pub(super) async fn start(self: &Arc<Self>, host: &Arc<Host>, start: Start) {
        if let Err(failure) = manager::start(self, host, start).await {
            self.judge.complain(failure);
        }
    }

    /// Nothing of the run is left.
    pub(super) fn end(&self) {
        for host in self.hosts.values() {
            host.disk.wipe();
            *host.running.lock() = None;
        }
    }

    /// Running tasks of every node.
    pub(super) fn runs(&self) -> BTreeSet<(String, String)> {
        let mut runs = BTreeSet::new();
        for host in self.hosts.values() {
            let Some(node_id) = host.state.lock().node_id.clone() else { continue };
            runs.extend(host.runs.lock().iter().map(|task| (node_id.clone(), task.clone())));
        }
        runs
    }
}

/// What is left of a manager whose disk is gone: it can do nothing any more.
fn stop(running: &Arc<Running>) {
    running.desk.close();
    let raft = running.raft.clone();
    drop(SimRuntime::spawn(async move { drop(raft.shutdown().await) }));
}

fn tokens() -> (String, JoinTokens) {
    let digest = "ab".repeat(32);
    let compose = |secret: &str| token::compose(&digest, secret).unwrap_or_default();
    let worker = compose("0000000000000000000worker");
    let manager = compose("000000000000000000manager");
    (digest, JoinTokens { worker, manager })
}

/// How a host's node joins.
pub(super) fn join_request(host: u32, node_id: &str, role: NodeRole) -> JoinRequest {
    let (_, tokens) = tokens();
    JoinRequest {
        node_id: node_id.to_owned(),
        spec: Some(NodeSpec { role: role.into(), ..NodeSpec::default() }),
        addr: Peer::of_host(host).addr,
        data_path_addr: format!("10.88.0.{host}"),
        token: if role == NodeRole::Manager { tokens.manager } else { tokens.worker },
        ..JoinRequest::default()
    }
}

pub(super) fn founding(host: u32, node_id: &str) -> Founding {
    let (digest, tokens) = tokens();
    let signing = SigningCa { cert_pem: "a root".into(), key_pem: "its key".into() };
    let root_ca =
        RootCa { signing: Some(signing), digest, tokens: Some(tokens), ..RootCa::default() };
    let node = join_request(host, node_id, NodeRole::Manager);
    Founding { node, root_ca, ..Founding::default() }
}
