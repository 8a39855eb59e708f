//! A state that is rewritten for one manager, with a crash at every step on the way.

use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use shoal_api::{Batch, Change, Cluster, Cursors, ManagerStatus, Node, Service};

use super::*;
use crate::types::{Entry, Proposal};

const SERVICES: u64 = 9;
/// The snapshot holds entries up to this one.
const COVERED: u64 = 5;

fn owner() -> Identity {
    Identity { node_id: "n2".into(), raft_id: 2 }
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: 3u64.into(), index }
}

fn members(ids: &[u64]) -> Membership {
    let nodes = ids.iter().map(|id| (*id, Peer::default())).collect::<BTreeMap<_, _>>();
    Membership::new(vec![ids.iter().copied().collect()], nodes).unwrap()
}

fn entry(index: u64, changes: Vec<Change>) -> Entry {
    let proposal = Proposal(Batch { changes, now_ns: index });
    Entry::new(log_id(index), EntryPayload::Normal(proposal))
}

/// Manager 2 of three, with raft ids up to 6 given: the cluster and some services in a snapshot,
/// the rest in the log, the last of them not known to be committed.
async fn state(folder: &Path) -> Vault {
    let vault = Vault::create(folder, None).unwrap();
    identity::claim(folder, &vault, &owner(), None).unwrap();
    let cluster = Cluster {
        id: "c1".into(),
        last: Some(Cursors { raft_id: 6, ..Cursors::default() }),
        ..Cluster::default()
    };
    let nodes = (1..=3).map(|raft_id| {
        let manager = Some(ManagerStatus { raft_id, addr: format!("host{raft_id}:1") });
        Node { id: format!("n{raft_id}"), manager, ..Node::default() }.put()
    });
    let mut entries = vec![entry(1, std::iter::once(cluster.put()).chain(nodes).collect())];
    for index in 2..=SERVICES {
        let id = format!("service{index}");
        let spec = shoal_api::ServiceSpec { name: id.clone(), ..Default::default() };
        entries
            .push(entry(index, vec![Service { id, spec: Some(spec), ..Service::default() }.put()]));
    }
    entries.push(Entry::new(log_id(SERVICES + 1), EntryPayload::Membership(members(&[1, 2, 3]))));

    let mut store = Store::default();
    for entry in entries.iter().take_while(|entry| entry.log_id.index <= COVERED) {
        let EntryPayload::Normal(proposal) = &entry.payload else { unreachable!() };
        store.apply(entry.log_id.index, &proposal.0).unwrap();
    }
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(COVERED)),
        last_membership: StoredMembership::new(Some(log_id(COVERED)), members(&[1, 2])),
    };
    snapshot::save(folder, &vault, &snapshot::encode(&meta, &store).unwrap()).unwrap();
    let mut log = LogStore::open(&folder.join(LOG), &vault, &owner()).unwrap();
    log.blocking_append(entries).await.unwrap();
    log.purge(log_id(COVERED)).await.unwrap();
    log.save_vote(&Vote::new(4, 1)).await.unwrap();
    let trouble = log.trouble();
    drop(log);
    crate::log_store::closed(trouble).await;
    vault
}

fn services(store: &Store) -> usize {
    store.services().count()
}

/// What a manager that is started now would find: whole, and either all old or all new.
fn check(folder: &Path, vault: &Vault, at: &str) -> bool {
    finish(folder).unwrap();
    let found = identity::load(folder).unwrap().unwrap();
    let log = LogStore::read(&folder.join(LOG), vault, &found).unwrap();
    let bytes = snapshot::load(folder, vault).unwrap().unwrap();
    let (meta, store) = snapshot::decode(&bytes).unwrap();
    let voters: Vec<u64> = meta.last_membership.voter_ids().collect();
    if found == owner() {
        assert_eq!(log.entries.len(), 5, "{at}");
        assert_eq!(meta.last_log_id, Some(log_id(COVERED)), "{at}");
        assert_eq!(voters, [1, 2], "{at}");
        assert_eq!(identity::forced(folder, vault).unwrap(), None, "{at}: it is not alone");
        return false;
    }
    assert_eq!(found, Identity { node_id: "n2".into(), raft_id: 7 }, "{at}");
    assert!(log.entries.is_empty(), "{at}");
    assert_eq!(log.purged, Some(log_id(SERVICES + 1)), "{at}");
    assert_eq!(log.vote, Some(Vote::new(4, 7)), "{at}");
    assert_eq!(meta.last_log_id, log.purged, "{at}");
    assert_eq!(voters, [7], "{at}");
    assert_eq!(services(&store), 8, "{at}");
    let node = identity::forced(folder, vault).unwrap().unwrap();
    assert_eq!(node.addr, "host2:2", "{at}");
    true
}

fn node() -> JoinRequest {
    JoinRequest { node_id: "n2".into(), addr: "host2:2".into(), ..JoinRequest::default() }
}

#[tokio::test]
async fn all_that_was_stored_goes_on_under_an_id_that_nobody_had() {
    let folder = tempfile::tempdir().unwrap();
    let vault = state(folder.path()).await;
    let new =
        rewrite(folder.path(), &vault, &owner(), &node(), "host2:2", &mut |_| Ok(())).unwrap();
    assert_eq!(new.raft_id, 7);
    assert!(check(folder.path(), &vault, "the end"));
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["forced", "manager", "raft.redb", "snapshot", "vault"]);
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_the_old_state_or_the_new_one() {
    let mut at = 0;
    let (mut old, mut new) = (0, 0);
    loop {
        let folder = tempfile::tempdir().unwrap();
        let vault = state(folder.path()).await;
        let mut step = 0;
        let mut last = "";
        let mut crash = |name| {
            step += 1;
            last = name;
            if step > at { Err(io::Error::other("crashed")) } else { Ok(()) }
        };
        let ended =
            rewrite(folder.path(), &vault, &owner(), &node(), "host2:2", &mut crash).is_ok();
        let is_new = check(folder.path(), &vault, last);
        if ended {
            assert!(is_new);
            break;
        }
        *(if is_new { &mut new } else { &mut old }) += 1;
        at += 1;
        // Whoever asks again gets there, from wherever it was.
        if !is_new {
            rewrite(folder.path(), &vault, &owner(), &node(), "host2:2", &mut |_| Ok(())).unwrap();
            assert!(check(folder.path(), &vault, "again"));
        }
    }
    assert_eq!((old, new), (5, 5));
}

#[tokio::test]
async fn a_manager_that_never_had_the_clusters_state_cannot_go_on_alone() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), None).unwrap();
    identity::claim(folder.path(), &vault, &owner(), None).unwrap();
    let refused =
        rewrite(folder.path(), &vault, &owner(), &node(), "host2:2", &mut |_| Ok(())).unwrap_err();
    assert!(matches!(refused, ManagerError::Refused { .. }), "{refused}");
    assert_eq!(identity::load(folder.path()).unwrap(), Some(owner()));
}

#[tokio::test]
async fn a_log_that_goes_on_after_a_lost_snapshot_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let vault = state(folder.path()).await;
    std::fs::remove_file(folder.path().join(snapshot::FILE)).unwrap();
    let lost =
        rewrite(folder.path(), &vault, &owner(), &node(), "host2:2", &mut |_| Ok(())).unwrap_err();
    assert!(matches!(lost, ManagerError::Lost { .. }), "{lost}");
}
