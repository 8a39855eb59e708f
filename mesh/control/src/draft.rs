//! The next batch while it is being made: a speculative store, and what in it was touched.
//!
//! Roles read and write the draft as if it were the store, each one sees what those before it did,
//! and the batch is the net difference to what is committed: a task that was made, addressed and
//! placed in one step is one change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use prost::Message;
use shoal_api::id::IdSource;
use shoal_api::time::Timestamp;
use shoal_api::{Batch, Change, Cluster, Kind, Object, Removal, Task, change};

use crate::store::Store;

/// The most objects that one batch should change. Roles that would go on do so in the next step.
pub(crate) const ROOM: usize = 1_000;
/// The most bytes that one batch should hold, far under what one message between managers may
/// carry: a batch that did not fit would never be committed, nor anything after it. A task carries
/// its whole spec, so a few objects may fill it. `SwarmKit`'s limit is alike (swarm.md §1.0).
pub(crate) const ROOM_BYTES: usize = 1 << 20;

/// An object that a role wrote or took away, as the roles after it see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touched {
    /// The node.
    Node(String),
    /// The service.
    Service(String),
    /// The task and its service.
    Task {
        /// The task.
        id: String,
        /// Its service.
        service_id: String,
    },
    /// A network or the cluster itself.
    Other,
}

/// The next batch while it is being made.
pub(crate) struct Draft<'a> {
    base: &'a Store,
    store: Store,
    /// With each object's bytes as it was put last.
    touched: BTreeMap<(Kind, String), usize>,
    bytes: usize,
    journal: Vec<Touched>,
    now: Timestamp,
}

impl Deref for Draft<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl<'a> Draft<'a> {
    pub(crate) fn new(base: &'a Store, now: Timestamp) -> Self {
        let store = base.clone();
        Self { base, store, touched: BTreeMap::new(), bytes: 0, journal: Vec::new(), now }
    }

    /// The instant of this step.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// The store as it is committed, without what this step changes.
    pub(crate) fn committed(&self) -> &'a Store {
        self.base
    }

    /// An id that no service and no task has: a seed that was used before gives no conflict.
    pub(crate) fn fresh_id(&self, ids: &mut IdSource) -> String {
        loop {
            let id = ids.next_id();
            if self.service(&id).is_none() && self.task(&id).is_none() {
                return id;
            }
        }
    }

    /// Stores an object, unless it is as it was.
    pub(crate) fn put(&mut self, object: impl Into<Object>) {
        let object = object.into();
        let Some(kind) = object.kind() else { return };
        if self.store.object(kind, object.id()).is_some_and(|old| old == object) {
            return;
        }
        self.touch(kind, &object, object.encoded_len());
        let shared = self.store.insert(object);
        debug_assert_eq!(shared, None, "a role takes free numbers only");
    }

    /// Changes a task, if it is still there.
    pub(crate) fn edit_task(&mut self, id: &str, edit: impl FnOnce(&mut Task)) {
        if let Some(task) = self.store.task(id) {
            let mut task = Task::clone(task);
            edit(&mut task);
            self.put(task);
        }
    }

    /// Takes an object away.
    pub(crate) fn remove(&mut self, kind: Kind, id: &str) {
        if let Some(object) = self.store.take(kind, id) {
            self.touch(kind, &object, 0);
        }
    }

    /// Whether the batch may still grow.
    pub(crate) fn has_room(&self) -> bool {
        self.touched.len() < ROOM && self.bytes < ROOM_BYTES
    }

    /// Whether a task may be changed: there is room, or it is in the batch already.
    pub(crate) fn has_room_for(&self, task_id: &str) -> bool {
        self.has_room() || self.touched.contains_key(&(Kind::Task, task_id.to_owned()))
    }

    /// How many touches there were: a position for [`touched_since`](Self::touched_since).
    pub(crate) fn touches(&self) -> usize {
        self.journal.len()
    }

    /// What was touched after a position.
    pub(crate) fn touched_since(&self, position: usize) -> &[Touched] {
        &self.journal[position..]
    }

    /// The net difference to what is committed; `None` when there is none.
    ///
    /// A batch that only takes away would leave no trace of its time, and the next leader's clock
    /// starts from the newest that the store has: such a batch writes the cluster's object once more.
    pub(crate) fn batch(&self) -> Option<Batch> {
        let changes = self.touched.keys().filter_map(|(kind, id)| self.change(*kind, id));
        let mut changes: Vec<_> = changes.collect();
        let is_removal = |change: &Change| matches!(change.change, Some(change::Change::Remove(_)));
        if !changes.is_empty() && changes.iter().all(is_removal) {
            let cluster = self.base.cluster().map(|cluster| Cluster::clone(cluster).into());
            changes.extend(cluster.map(|it| Change { change: Some(change::Change::Put(it)) }));
        }
        (!changes.is_empty()).then(|| Batch { changes, now_ns: self.now.nanos() })
    }

    fn change(&self, kind: Kind, id: &str) -> Option<Change> {
        let (old, new) = (self.base.object(kind, id), self.store.object(kind, id));
        let change = match (old, new) {
            (None, None) => return None,
            (Some(old), Some(new)) if old == new => return None,
            (_, Some(new)) => change::Change::Put(new),
            (Some(old), None) => change::Change::Remove(Removal {
                kind: kind.into(),
                id: id.to_owned(),
                version: old.version(),
            }),
        };
        Some(Change { change: Some(change) })
    }

    fn touch(&mut self, kind: Kind, object: &Object, bytes: usize) {
        use shoal_api::object::Object as Of;
        let before = self.touched.insert((kind, object.id().to_owned()), bytes);
        self.bytes = self.bytes - before.unwrap_or(0) + bytes;
        self.journal.push(match &object.object {
            Some(Of::Node(node)) => Touched::Node(node.id.clone()),
            Some(Of::Service(service)) => Touched::Service(service.id.clone()),
            Some(Of::Task(task)) => {
                Touched::Task { id: task.id.clone(), service_id: task.service_id.clone() }
            }
            _ => Touched::Other,
        });
    }
}

/// The services that news concern: their own, their tasks', and those with tasks on a node.
pub(crate) fn services_of(store: &Store, news: &BTreeSet<Touched>) -> BTreeSet<String> {
    let mut services = BTreeSet::new();
    for touched in news {
        match touched {
            Touched::Service(id) | Touched::Task { service_id: id, .. } => {
                services.insert(id.clone());
            }
            Touched::Node(id) => {
                services.extend(store.tasks_of_node(id).map(|task| task.service_id.clone()));
            }
            Touched::Other => {}
        }
    }
    services
}
