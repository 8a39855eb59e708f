//! What happened in a world, so that a tame simulation is noticed.

use std::collections::BTreeSet;

use shoal_api::{Batch, Cluster, NodeState, TaskState};
use shoal_control::Store;

/// What happened, so that a tame simulation is noticed.
#[derive(Debug, Default)]
pub struct Seen {
    pub lost: u32,
    pub leaders: u32,
    pub down: u32,
    pub failed: u32,
    pub refused: u32,
    pub replaced: u32,
    pub joined: u32,
    pub removed: u32,
    pub demoted: u32,
    pub rolled_over: u32,
    pub superseded: u32,
    pub called_off: u32,
    /// Managers that went on without the others.
    pub forced: u32,
    /// Daemons that were told that they are copies.
    pub copied: u32,
    /// Certificates that were given and never arrived.
    pub unanswered: u32,
}

impl Seen {
    /// Counts another world's, too.
    pub fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.leaders += other.leaders;
        self.down += other.down;
        self.failed += other.failed;
        self.refused += other.refused;
        self.replaced += other.replaced;
        self.joined += other.joined;
        self.removed += other.removed;
        self.demoted += other.demoted;
        self.rolled_over += other.rolled_over;
        self.superseded += other.superseded;
        self.called_off += other.called_off;
        self.forced += other.forced;
        self.copied += other.copied;
        self.unanswered += other.unanswered;
    }

    /// Counts what a batch changes.
    pub fn count(&mut self, store: &Store, batch: &Batch) {
        let mut downs = BTreeSet::new();
        for object in batch.changes.iter().filter_map(|change| match &change.change {
            Some(shoal_api::change::Change::Put(object)) => object.object.as_ref(),
            _ => None,
        }) {
            match object {
                shoal_api::object::Object::Node(node) => {
                    if node.state() == NodeState::Down {
                        downs.insert(node.id.clone());
                    }
                    let before = store.node(&node.id);
                    let was = before.is_some_and(|before| before.is_manager());
                    self.demoted += u32::from(was && !node.is_manager());
                }
                shoal_api::object::Object::Cluster(cluster) => {
                    let root = |cluster: &Cluster| cluster.root_ca.clone().unwrap_or_default();
                    let before = store.cluster().map(|before| root(before));
                    let (before, now) = (before.unwrap_or_default(), root(cluster));
                    let rolls = before.rotation.is_some();
                    let ended = rolls && now.rotation.is_none();
                    let off = ended && before.digest == now.digest;
                    self.called_off += u32::from(off);
                    self.rolled_over += u32::from(ended && !off);
                    let other = now.rotation.is_some() && now.rotation != before.rotation;
                    self.superseded += u32::from(rolls && other);
                }
                shoal_api::object::Object::Task(task) => {
                    self.failed += u32::from(task.state() == TaskState::Failed);
                }
                _ => {}
            }
        }
        self.down += u32::try_from(downs.len()).expect("there are few nodes");
    }
}
