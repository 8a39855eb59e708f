//! Which snapshots are on the disk.

use std::fs;
use std::path::Path;

use shoal_api::{Batch, Cluster, ClusterSpec, RaftSpec};

use super::*;

/// The cluster at `index` wants so many snapshots beside the newest, and a snapshot is made of it.
async fn snapshot_at(machine: &mut StateMachine, index: u64, wanted: Option<u64>) {
    let raft = RaftSpec { max_snapshots: wanted, ..RaftSpec::default() };
    let spec = ClusterSpec { raft: Some(raft), ..ClusterSpec::default() };
    let cluster = Cluster { id: "c".into(), spec: Some(spec), ..Cluster::default() };
    let batch = Batch { changes: vec![cluster.put()], now_ns: index };
    // Each batch replaces the cluster: the version is of no matter here.
    let mut store = Store::default();
    store.apply(index, &batch).unwrap();
    *machine.view.store.write() = store;
    machine.applied = Some(LogId { leader_id: 1u64.into(), index });
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("snapshot"));
    names.sort();
    names
}

#[tokio::test]
async fn as_many_older_snapshots_stay_as_the_spec_says_until_a_data_key_is_retired() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), None).unwrap();
    let open = || StateMachine::open(folder.path().into(), vault.clone(), Arc::default()).unwrap();
    let mut machine = open();
    snapshot_at(&mut machine, 1, None).await;
    snapshot_at(&mut machine, 2, None).await;
    assert_eq!(names(folder.path()), ["snapshot"], "none unless it is asked for");
    for index in 3..=6 {
        snapshot_at(&mut machine, index, Some(2)).await;
    }
    assert_eq!(names(folder.path()), ["snapshot", "snapshot.4", "snapshot.5"]);
    machine.prune_older(1).await.unwrap();
    assert_eq!(names(folder.path()), ["snapshot", "snapshot.5"]);
    snapshot_at(&mut machine, 7, Some(2)).await;
    assert_eq!(names(folder.path()), ["snapshot", "snapshot.5", "snapshot.6"]);
    fs::write(folder.path().join("snapshot.6"), "not read at start").unwrap();
    assert_eq!(open().applied(), Some(7));
    vault.relock(None, 8).unwrap();
    machine.reseal().await.unwrap();
    vault.retire(vault.newest().0).unwrap();
    assert_eq!(names(folder.path()), ["snapshot"], "they were sealed under the old key");
    assert_eq!(open().applied(), Some(7));
}
