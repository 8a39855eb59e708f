//! No address, MAC, backend number, node number, service number, name or port belongs to two.

use std::collections::BTreeSet;
use std::fmt::Debug;

use shoal_control::Store;

pub fn check(store: &Store) {
    let attachments: Vec<_> = store.tasks().flat_map(|task| task.attachments.iter()).collect();
    distinct("address", attachments.iter().map(|a| (&a.network_id, &a.address)));
    distinct("MAC", attachments.iter().map(|a| &a.mac));
    distinct("backend number", attachments.iter().map(|a| a.backend));
    distinct("node number", store.nodes().map(|node| node.number));
    distinct("raft id", store.nodes().filter_map(|n| n.manager.as_ref()).map(|m| m.raft_id));
    distinct("service number", store.services().map(|service| service.number));
    let named = store.services().filter(|service| !service.pending_delete);
    distinct("name", named.map(|service| service.name().to_owned()));
    let ports = store.services().flat_map(|service| service.ports.iter());
    distinct("port", ports.map(|port| (port.protocol, port.published_port)));
    for service in store.services().filter(|service| !service.pending_delete) {
        assert!(service.ports.iter().all(|port| port.published_port != 0), "ports are filled in");
        let wished = service.spec.as_ref().and_then(|spec| spec.endpoint.as_ref());
        assert_eq!(service.ports.len(), wished.map_or(0, |endpoint| endpoint.ports.len()));
    }
}

fn distinct<T: Ord + Debug>(what: &str, items: impl Iterator<Item = T>) {
    let mut seen = BTreeSet::new();
    for item in items {
        assert!(!seen.contains(&item), "{what} {item:?} belongs to two");
        seen.insert(item);
    }
}
