//! The leader, its store and followers, the network between, and time.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_api::id::IdSource;
use shoal_api::time::Timestamp;
use shoal_api::{
    Batch, Caller, JoinRequest, JoinTokens, Node, NodeAvailability, NodeState, RootCa, SigningCa,
    UpdateNodeRequest, Write, token, write,
};
use shoal_control::{Control, Founding, Input, Refusal, Step, Store};

use crate::agent::{Agent, Copied};
use crate::invariants::Memory;
use crate::operator::{self, Certificate};
use crate::seen::Seen;
use crate::user;

const TICK: Duration = Duration::from_millis(100);
const NODES: u32 = 5;
/// More do not make it more interesting.
const NODES_MAX: usize = 7;

/// Seeded chance. Once healed, nothing unlikely happens any more.
#[derive(Debug)]
pub struct Dice {
    source: IdSource,
    healed: bool,
}

impl Dice {
    pub fn one_in(&mut self, n: u64) -> bool {
        self.source.next_u64().is_multiple_of(n) && !self.healed
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.source.next_u64() % n as u64).expect("it is below a usize")
    }

    pub fn up_to_number(&mut self, most: u64) -> u64 {
        self.source.next_u64() % (most + 1)
    }

    pub fn up_to(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).expect("short durations fit");
        Duration::from_nanos(self.up_to_number(nanos))
    }
}

/// All of it.
pub struct World {
    pub store: Store,
    pub control: Control,
    pub agents: Vec<Agent>,
    pub now: Timestamp,
    pub batches: Vec<Batch>,
    pub seen: Seen,
    pub memory: Memory,
    dice: Dice,
    ids: IdSource,
    /// Another manager, which applies the same log; compared when the leader changes.
    follower: Store,
    quiet: u32,
    /// Number of the node that came last.
    newest: u32,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let now = Timestamp(1_000_000_000_000);
        let store = Store::default();
        let control = Control::new(&store, seed, now, &BTreeMap::new());
        let mut world = Self {
            store: store.clone(),
            control,
            agents: Vec::new(),
            now,
            batches: Vec::new(),
            seen: Seen::default(),
            memory: Memory::default(),
            dice: Dice { source: IdSource::new(seed), healed: false },
            ids: IdSource::new(!seed),
            follower: store,
            quiet: 0,
            newest: NODES,
        };
        // Small enough that history must give its addresses back.
        let founding = Founding {
            node: request(1),
            root_ca: root(),
            address_pools: vec!["10.7.0.0/26".into()],
            subnet_size: 26,
            ..Founding::default()
        };
        world.step(vec![Input::Bootstrap { id: 0, founding: Box::new(founding) }], true);
        for number in 2..=NODES {
            let join = world.join(number, number <= 3);
            world.ask(join);
        }
        world
    }

    /// Ticks since the last batch.
    pub fn quiet_ticks(&self) -> u32 {
        self.quiet
    }

    /// From now on everything works; all nodes may take tasks.
    pub fn heal(&mut self) {
        self.dice.healed = true;
        for agent in &mut self.agents {
            agent.away_until = self.now;
        }
        let nodes: Vec<_> = self.store.nodes().cloned().collect();
        for node in nodes {
            let mut spec = node.spec.clone().expect("nodes have specs");
            spec.set_availability(NodeAvailability::Active);
            let (node_id, version) = (node.id.clone(), node.version());
            let request = UpdateNodeRequest { node_id, version, spec: Some(spec) };
            self.ask(write::Write::UpdateNode(request));
        }
    }

    pub fn tick(&mut self) {
        self.now = self.now + TICK;
        self.quiet += 1;
        let mut inputs = Vec::new();
        for agent in &mut self.agents {
            if self.dice.one_in(150) {
                let away = self.dice.up_to(Duration::from_secs(8));
                agent.away_until = self.now + away;
                // The leader may learn of the broken stream, or only miss the heartbeats.
                if let Some(session_id) = agent.session.clone().filter(|_| self.dice.one_in(2)) {
                    inputs.push(Input::SessionClosed { session_id });
                }
                agent.disconnect(self.now, &mut self.dice);
                if self.dice.one_in(3) {
                    agent.lose_power(&mut self.ids);
                }
            }
            if agent.copy.is_none() && self.dice.one_in(400) {
                let instance = self.ids.next_id();
                agent.copy = Some(Copied { instance, session: None, retry_at: self.now });
            }
            inputs.extend(agent.tick(self.now, &mut self.dice, &mut self.ids));
        }
        inputs.extend(self.membership());
        if self.dice.one_in(8)
            && let Some(wish) = user::wish(&self.store, &mut self.dice)
        {
            inputs.push(self.input(wish));
        }
        let due = self.control.deadline().is_some_and(|at| at <= self.now);
        if !inputs.is_empty() || due {
            let commits = !self.dice.one_in(30);
            self.step(inputs, commits);
        }
        if self.dice.one_in(120) {
            self.change_leader();
        }
        if self.dice.one_in(200) {
            self.force_new();
        }
    }

    /// Nodes that come, operators that change what nodes are, and what Raft says.
    fn membership(&mut self) -> Vec<Input> {
        let mut inputs = operator::removed_members(&self.store, &mut self.dice);
        if self.dice.one_in(60) && self.store.nodes().count() < NODES_MAX {
            self.newest += 1;
            let manager = self.dice.one_in(2);
            let join = self.join(self.newest, manager);
            inputs.push(self.input(join));
        }
        if self.dice.one_in(8)
            && let Some(wish) = operator::wish(&self.store, &mut self.dice)
        {
            inputs.push(self.input(wish));
        }
        if !inputs.is_empty() {
            let here = self.agents.iter().filter(|agent| agent.away_until <= self.now);
            let node_ids = here.map(|agent| agent.node.clone()).collect();
            inputs.insert(0, Input::Reachable { node_ids });
        }
        inputs
    }

    /// A join with a token that is right, or was so a while ago.
    fn join(&mut self, number: u32, manager: bool) -> write::Write {
        let root = self.store.cluster().and_then(|cluster| cluster.root_ca.clone());
        let now = root.and_then(|root| root.tokens).expect("there are tokens");
        let first = root_tokens();
        let tokens = if self.dice.one_in(8) { first } else { now };
        let token = if manager { tokens.manager } else { tokens.worker };
        write::Write::Join(JoinRequest { token, ..request(number) })
    }

    fn input(&mut self, write: write::Write) -> Input {
        let write = Write { write: Some(write) };
        Input::Write { id: self.ids.next_u64(), caller: Caller::default(), write }
    }

    fn ask(&mut self, write: write::Write) {
        let input = self.input(write);
        self.step(vec![input], true);
    }

    fn step(&mut self, inputs: Vec<Input>, commits: bool) {
        let step = self.control.step(&self.store, inputs, self.now);
        if let Some(batch) = &step.batch {
            self.quiet = 0;
            self.seen.count(&self.store, batch);
            if commits {
                self.commit(batch.clone());
            } else {
                self.seen.lost += 1;
                self.control.lost();
            }
        }
        let stored = commits || step.batch.is_none();
        self.answer(&step, stored);
        self.follow_members();
        for standing in self.control.standings(&self.store) {
            let session = Some(&standing.session_id);
            if let Some(agent) = self.agents.iter_mut().find(|a| a.session.as_ref() == session) {
                agent.wanted_issuer = Some(standing.issuer_digest);
            }
        }
        for (session_id, message) in self.control.assignments(&self.store) {
            let delay = self.dice.up_to(Duration::from_millis(400));
            let agent = self.agents.iter_mut().find(|a| a.session.as_deref() == Some(&session_id));
            if let Some(agent) = agent {
                let after = agent.inbox.back().map_or(self.now, |(at, _)| *at);
                agent.inbox.push_back(((self.now + delay).max(after), message));
            }
        }
    }

    /// A node that is a member runs, one that is not any more stops.
    fn follow_members(&mut self) {
        let before = self.agents.len();
        self.agents.retain(|agent| self.store.node(&agent.node).is_some());
        self.seen.removed += u32::try_from(before - self.agents.len()).expect("few nodes");
        for node in self.store.nodes() {
            if self.agents.iter().all(|agent| agent.node != node.id) {
                self.seen.joined += 1;
                let certificate = Certificate::issue(&self.store);
                self.agents.push(Agent::new(node.id.clone(), certificate));
            }
        }
        // In the order of the nodes, so that a seed gives the same run.
        self.agents.sort_by(|a, b| a.node.cmp(&b.node));
    }

    /// The leader signs once the write is stored, and its answer may be lost.
    fn answer_renewals(&mut self, step: &Step, stored: bool) {
        for agent in &mut self.agents {
            let done = step.on_commit.iter().map(|(ticket, _)| *ticket);
            let refused = step.refused.iter().map(|(ticket, _)| *ticket);
            let mine = |ticket: u64| agent.renewing == Some(ticket);
            let (done, refused) = (done.into_iter().any(mine), refused.into_iter().any(mine));
            if !done && !refused {
                continue;
            }
            agent.renewing = None;
            if done && stored && self.dice.one_in(3) {
                self.seen.unanswered += 1;
            } else if done && stored {
                agent.certificate = Certificate::issue(&self.store);
            }
        }
    }

    fn answer(&mut self, step: &Step, stored: bool) {
        self.answer_renewals(step, stored);
        for (session_id, refusal) in &step.closed {
            self.seen.replaced += u32::from(matches!(refusal, Refusal::Replaced { .. }));
            self.close(session_id, matches!(refusal, Refusal::Copy { .. }));
        }
        for agent in &mut self.agents {
            let node = self.store.node(&agent.node);
            agent.was_down |= node.is_some_and(|node| node.state() == NodeState::Down);
        }
        for agent in &mut self.agents {
            for (ticket, _) in &step.on_commit {
                agent.answered(*ticket, stored);
            }
            for (ticket, _) in &step.refused {
                agent.answered(*ticket, false);
            }
        }
        self.seen.refused += u32::try_from(step.refused.len()).expect("few are refused");
    }

    /// The leader ends a session, of a node or of its copy.
    fn close(&mut self, session_id: &str, as_copy: bool) {
        self.seen.copied += u32::from(as_copy);
        for agent in &mut self.agents {
            let own = agent.session.as_deref() == Some(session_id);
            let copy = agent.copy.as_mut();
            let copy = copy.filter(|copy| copy.session.as_deref() == Some(session_id));
            if own {
                agent.disconnect(self.now, &mut self.dice);
            } else if let Some(copy) = copy {
                copy.session = None;
                copy.retry_at = self.now + self.dice.up_to(Duration::from_secs(1));
            } else {
                continue;
            }
            if as_copy {
                // Who is told so stops, and the other one is the node.
                let copy = agent.copy.take().expect("a node that runs once is no copy");
                if own {
                    agent.instance = copy.instance;
                }
            }
        }
    }

    fn commit(&mut self, batch: Batch) {
        let index = self.store.index() + 1 + self.dice.up_to_number(2);
        self.store.apply(index, &batch).expect("a leader's own batch holds");
        self.follower.apply(index, &batch).expect("it holds on every manager");
        self.batches.push(batch);
        self.control.committed(index);
    }

    /// A new leader knows the store and nothing else; all sessions break. The old one's last
    /// proposal may still come through.
    fn change_leader(&mut self) {
        self.seen.leaders += 1;
        let wish = user::wish(&self.store, &mut self.dice);
        let inputs = wish.map(|wish| self.input(wish)).into_iter().collect();
        let step = self.control.step(&self.store, inputs, self.now);
        if let Some(batch) = step.batch.filter(|_| self.dice.one_in(2)) {
            self.commit(batch);
        }
        assert_eq!(self.store, self.follower, "managers agree");
        self.store = Store::restore(self.store.snapshot());
        assert_eq!(self.store, self.follower, "a snapshot loses nothing");
        let mut last_seen = BTreeMap::new();
        if self.dice.one_in(2) {
            last_seen.insert("n1".to_owned(), self.now - Duration::from_millis(500));
        }
        let seed = self.ids.next_u64();
        self.control = Control::new(&self.store, seed, self.now, &last_seen);
        for agent in &mut self.agents {
            agent.disconnect(self.now, &mut self.dice);
            if let Some(copy) = &mut agent.copy {
                copy.session = None;
            }
        }
    }

    /// All managers but one are lost for good, and that one is started without them.
    fn force_new(&mut self) {
        self.change_leader();
        let managers: Vec<_> = self.store.nodes().filter(|node| node.is_manager()).collect();
        let node = Node::clone(managers[self.dice.below(managers.len())]);
        let last = self.store.cluster().and_then(|cluster| cluster.last).unwrap_or_default();
        let raft_id = last.raft_id + 1;
        let number = node.id.trim_start_matches('n').parse().expect("it has a number");
        let addr = node.manager.map(|manager| manager.addr).unwrap_or_default();
        let node = JoinRequest { addr, ..request(number) };
        let before = self.store.clone();
        // The first try may be lost with its leader.
        for commits in [self.dice.one_in(2), true] {
            let (id, node) = (self.ids.next_u64(), node.clone());
            self.step(vec![Input::ForceNew { id, node, raft_id }], commits);
        }
        self.seen.forced += 1;
        let left = self.store.nodes().filter_map(|node| node.manager.as_ref());
        let left: Vec<_> = left.map(|manager| manager.raft_id).collect();
        assert_eq!(left, [raft_id], "it is the only manager");
        assert_eq!(self.store.nodes().count(), before.nodes().count(), "all nodes stay");
        let services = |store: &Store| -> Vec<_> {
            let services = store.services().filter(|service| !service.pending_delete);
            services.map(|service| (service.id.clone(), service.ports.clone())).collect()
        };
        assert_eq!(services(&self.store), services(&before));
        for task in before.tasks().filter(|task| !task.state().is_terminal()) {
            let now = self.store.task(&task.id).filter(|_| !task.attachments.is_empty());
            assert!(now.is_none_or(|now| now.attachments == task.attachments), "{}", task.name());
        }
    }
}

/// The tokens that the cluster starts with.
fn root_tokens() -> JoinTokens {
    root().tokens.unwrap_or_default()
}

/// The root that the cluster starts with.
fn root() -> RootCa {
    let digest = format!("{:064x}", 1);
    let token = |secret| token::compose(&digest, secret).expect("it is a digest");
    let tokens = JoinTokens { worker: token("w"), manager: token("m") };
    let signing = SigningCa { cert_pem: "CERT".into(), key_pem: "KEY".into() };
    RootCa { signing: Some(signing), tokens: Some(tokens), digest, ..RootCa::default() }
}

fn request(number: u32) -> JoinRequest {
    JoinRequest {
        node_id: format!("n{number}"),
        addr: format!("10.88.0.{number}:2377"),
        data_path_addr: format!("10.88.0.{number}"),
        ..JoinRequest::default()
    }
}
