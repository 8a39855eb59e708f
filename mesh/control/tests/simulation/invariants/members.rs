//! An id in Raft belongs to one node for ever, there is always a manager, and a removed node stays
//! away.

use std::collections::BTreeMap;

use shoal_api::NodeRole;
use shoal_control::Store;

/// Which node each id in Raft was given to.
#[derive(Debug, Default)]
pub struct Memory {
    raft_ids: BTreeMap<u64, String>,
    /// Ids that a node had and has no more.
    over: BTreeMap<u64, String>,
}

pub fn check(memory: &mut Memory, store: &Store) {
    let Some(cluster) = store.cluster() else { return };
    let last = cluster.last.unwrap_or_default().raft_id;
    let managers = store
        .nodes()
        .filter_map(|node| node.manager.as_ref().map(|manager| (manager.raft_id, node.id.clone())));
    let managers: BTreeMap<u64, String> = managers.collect();
    for (raft_id, node) in &managers {
        assert!(*raft_id <= last, "raft id {raft_id} of {node} is above the cursor {last}");
        let known = memory.raft_ids.entry(*raft_id).or_insert_with(|| node.clone());
        assert_eq!(known, node, "raft id {raft_id} went to another node");
        assert!(!memory.over.contains_key(raft_id), "raft id {raft_id} of {node} came back");
    }
    let over = memory.raft_ids.iter().filter(|(raft_id, _)| !managers.contains_key(raft_id));
    memory.over.extend(over.map(|(raft_id, node)| (*raft_id, node.clone())));
    assert!(store.nodes().any(|node| node.role() == NodeRole::Manager && node.is_manager()));
    for id in cluster.removed_nodes.keys() {
        assert!(store.node(id).is_none(), "{id} was removed and is back");
    }
}
