//! Tells the other managers where this one is, while it has no leader that knows.
//!
//! Managers whose addresses all changed find each other without a leader: each asks every address
//! it ever knew, and every address of the names that its node joined by, looked up anew each time.
//! Whoever is asked notes where the other is and answers with all it knows. Once there is a leader
//! it writes the new addresses into the store, from where they get into Raft's membership.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use shoal_api::leader_client::LeaderClient;
use shoal_api::{AnnounceRequest, Caller, ManagerAddress, NodeRole, Write, write};
use shoal_transport::Credentials;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info};

use crate::address_book::AddressBook;
use crate::leader::{self, Command, Desk, LastHeard};
use crate::network;
use crate::state_machine::View;
use crate::types::{Raft, TypeConfig};

/// Between two rounds: fast enough for a cluster that is down, and a handful of small calls.
const ROUND: Duration = Duration::from_secs(1);
/// How long one manager may take to answer: more than a handshake on a busy machine.
const ANSWER: Duration = Duration::from_secs(2);
/// Addresses of one round: more than any cluster has, whatever a name stands for.
const ASKED: usize = 64;

/// What the task needs.
pub struct Announcer {
    /// The Raft node.
    pub raft: Raft,
    /// The store.
    pub view: Arc<View>,
    /// The addresses.
    pub book: Arc<AddressBook>,
    /// Where the leader's loop takes a new address.
    pub desk: Desk,
    /// When a leader was heard.
    pub last_heard: LastHeard,
    /// This node's certificate.
    pub credentials: Credentials,
    /// Names by which the managers were found once.
    pub join_addrs: Vec<String>,
    /// How long a leader may be silent.
    pub patience: Duration,
}

impl Announcer {
    /// Keeps the book in step with the membership and announces where that is needed; runs until
    /// Raft ends.
    pub async fn run(self) {
        let mut metrics = self.raft.metrics();
        let mut round = interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = metrics.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.note_members(&metrics.borrow_and_update());
                }
                _ = round.tick() => {
                    let lonely = {
                        let now = metrics.borrow_watched();
                        self.note_members(&now);
                        self.is_lonely(&now)
                    };
                    self.write_down();
                    if lonely {
                        self.ask_all().await;
                    }
                }
            }
        }
    }

    fn note_members(&self, now: &RaftMetrics<TypeConfig>) {
        let membership = now.membership_config.membership();
        self.book.set_members(membership.nodes().map(|(id, at)| (*id, at.addr.clone())).collect());
    }

    /// Whether the others should hear from this manager: it follows nobody, nobody follows it, or
    /// the leader has another address of it.
    fn is_lonely(&self, now: &RaftMetrics<TypeConfig>) -> bool {
        match now.state {
            ServerState::Leader => !leader::has_quorum(now),
            ServerState::Shutdown => false,
            _ => {
                let own = self.book.own();
                let moved = self.book.moved().iter().any(|moved| moved.raft_id == own.raft_id);
                moved || !self.last_heard.within(self.patience)
            }
        }
    }

    /// As the leader: gets the addresses that changed into the store.
    fn write_down(&self) {
        if !self.desk.is_open() {
            return;
        }
        let store = self.view.store();
        let mut stale: BTreeMap<u64, ManagerAddress> =
            self.book.moved().into_iter().map(|address| (address.raft_id, address)).collect();
        // One that is stored already reaches the membership by itself.
        for node in store.nodes() {
            let Some(manager) = &node.manager else { continue };
            if stale.get(&manager.raft_id).is_some_and(|moved| moved.addr == manager.addr) {
                stale.remove(&manager.raft_id);
            }
        }
        for address in stale.into_values() {
            info!(raft.id = address.raft_id, addr = address.addr, "a manager has moved");
            let node_id = self.book.own().node_id.clone();
            let caller = Caller { node_id, role: NodeRole::Manager.into() };
            let write = Box::new(Write { write: Some(write::Write::Moved(address)) });
            // Nobody waits: what is not written now is found again in the next round.
            let (reply, _) = oneshot::channel();
            drop(self.desk.send(Command::Write { caller, write, reply }));
        }
    }

    async fn ask_all(&self) {
        let mut addrs = BTreeSet::new();
        for name in &self.join_addrs {
            // A name may stand for several managers, and for others than a moment ago.
            if let Ok(Ok(found)) = timeout(ANSWER, tokio::net::lookup_host(name)).await {
                addrs.extend(found.map(|addr| addr.to_string()));
            }
        }
        addrs.extend(self.book.all().into_iter().map(|address| address.addr));
        addrs.extend(self.view.store().manager_addrs());
        addrs.remove(&self.book.own().addr);
        join_all(addrs.iter().take(ASKED).map(|addr| self.ask(addr))).await;
    }

    async fn ask(&self, addr: &str) {
        let answer = timeout(ANSWER, async {
            let channel = network::connect(&self.credentials, addr).await?;
            let request = AnnounceRequest { from: Some(self.book.own().clone()) };
            let answer = LeaderClient::new(channel).announce(request).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer.into_inner().managers)
        });
        match answer.await {
            Ok(Ok(managers)) => {
                for address in managers {
                    self.book.hear(address);
                }
            }
            Ok(Err(failure)) => debug!(addr, %failure, "no manager there"),
            Err(_late) => debug!(addr, "no manager answers there"),
        }
    }
}
