//! What must hold at every instant of every run, each in its own file with its source.
//!
//! The simulation reports what it does as [`Event`]s; the judge keeps what is needed to tell whether
//! a promise broke, and its own copy of the store, to which it applies each committed entry once.

mod acknowledged;
mod election_safety;
mod forward;
mod leader_append_only;
mod leader_completeness;
mod log_matching;
mod raft_ids;
mod stale_leader;
mod state_machine_safety;
mod unique;

use std::collections::BTreeMap;

use openraft::EntryPayload;
use parking_lot::Mutex;
use shoal_control::Store;

use super::types::{Entry, LogId, SnapshotMeta};

/// Something that the invariants look at.
pub(super) enum Event<'a> {
    /// A manager appended an entry to its log after `before`.
    Appended { raft_id: u64, entry: &'a Entry, before: Option<LogId> },
    /// A manager threw entries away, from this index on.
    Truncated { raft_id: u64, first_gone: u64, leads: bool },
    /// A manager was elected. `term_at`: the term of its log's entry; the outer `None` is purged.
    Leads { raft_id: u64, term: u64, term_at: &'a dyn Fn(u64) -> Option<Option<u64>> },
    /// A manager sent entries or heartbeats as the leader of a term.
    Acted { raft_id: u64, term: u64 },
    /// A manager applied an entry; `conflict`: the store refused the batch.
    Applied { raft_id: u64, before: Option<LogId>, entry: &'a Entry, conflict: Option<&'a str> },
    /// A manager's store came from a snapshot.
    Restored { raft_id: u64, meta: &'a SnapshotMeta, store: &'a Store },
    /// An entry was applied for the first time by anyone; the store has it.
    Chosen { entry: &'a Entry, store: &'a Store, events: &'a [shoal_api::Event] },
    /// A caller was told by the leader of a term that the write at an index is stored.
    Acknowledged { raft_id: u64, term: u64, index: u64 },
    /// A reader got the store as of an index from a manager.
    Read { reader: u64, index: u64 },
    /// A manager's store once all is healed.
    Healed { raft_id: u64, store: &'a Store },
}

/// One promise.
trait Invariant: Send {
    /// # Errors
    /// How it broke.
    fn observe(&mut self, event: &Event<'_>) -> Result<(), String>;
}

/// Looks at all that happens.
pub(super) struct Judge(Mutex<State>);

struct State {
    invariants: Vec<(&'static str, Box<dyn Invariant>)>,
    store: Store,
    chosen: u64,
    broken: Vec<String>,
}

impl Judge {
    pub(super) fn new() -> Self {
        let invariants: Vec<(&'static str, Box<dyn Invariant>)> = vec![
            ("election safety", Box::<election_safety::ElectionSafety>::default()),
            ("leader append-only", Box::<leader_append_only::LeaderAppendOnly>::default()),
            ("log matching", Box::<log_matching::LogMatching>::default()),
            ("leader completeness", Box::<leader_completeness::LeaderCompleteness>::default()),
            ("state machine safety", Box::<state_machine_safety::StateMachineSafety>::default()),
            ("no acknowledged write lost", Box::<acknowledged::Acknowledged>::default()),
            ("no state goes backwards", Box::<forward::Forward>::default()),
            ("nothing belongs to two", Box::<unique::Unique>::default()),
            ("no write by a stale leader", Box::<stale_leader::StaleLeader>::default()),
            ("raft ids are never reused", Box::<raft_ids::RaftIds>::default()),
        ];
        let store = Store::default();
        Self(Mutex::new(State { invariants, store, chosen: 0, broken: Vec::new() }))
    }

    pub(super) fn observe(&self, event: &Event<'_>) {
        let mut state = self.0.lock();
        state.ask(event);
        if let Event::Applied { entry, .. } = event {
            state.choose(entry);
        }
    }

    /// Something that no event tells.
    pub(super) fn complain(&self, what: String) {
        self.0.lock().broken.push(what);
    }

    /// What broke, oldest first.
    pub(super) fn broken(&self) -> Vec<String> {
        self.0.lock().broken.clone()
    }

    /// Index of the newest committed entry, as far as anyone applied it.
    pub(super) fn chosen(&self) -> u64 {
        self.0.lock().chosen
    }
}

impl State {
    fn ask(&mut self, event: &Event<'_>) {
        for (name, invariant) in &mut self.invariants {
            if let Err(how) = invariant.observe(event) {
                self.broken.push(format!("{name}: {how}"));
            }
        }
    }

    /// Entries are applied in order by each, so the first to apply one comes in order, too.
    fn choose(&mut self, entry: &Entry) {
        if entry.log_id.index != self.chosen + 1 && self.chosen != 0 {
            return;
        }
        self.chosen = entry.log_id.index;
        let mut store = std::mem::take(&mut self.store);
        let events = match &entry.payload {
            EntryPayload::Normal(proposal) => {
                store.apply(entry.log_id.index, &proposal.batch).unwrap_or_default()
            }
            EntryPayload::Blank | EntryPayload::Membership(_) => Vec::new(),
        };
        self.ask(&Event::Chosen { entry, store: &store, events: &events });
        self.store = store;
    }
}

/// What was once said of something may not be said otherwise later.
fn once<K: Ord, V: PartialEq + std::fmt::Debug>(
    known: &mut BTreeMap<K, V>,
    key: K,
    value: V,
) -> Result<(), (String, String)> {
    match known.get(&key) {
        Some(before) if *before != value => Err((format!("{before:?}"), format!("{value:?}"))),
        _ => {
            known.insert(key, value);
            Ok(())
        }
    }
}
