//! What the disk brings back, and what it must not.

use std::fs;

use shoal_manager::{Config, Manager, ManagerError, NewCluster, Timings, Vault, has_state};

use crate::harness::{Cluster, Host, eventually, has_file};

/// Snapshots after few entries, so that a test need not write thousands.
fn frequent_snapshots() -> Timings {
    Timings { snapshot_after: 20, kept_entries: 5, ..Timings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_restarts_whole_from_its_disks() {
    let mut cluster = Cluster::start_with(3, &frequent_snapshots()).await;
    let mut names: Vec<String> = (0..30).map(|number| format!("web{number:02}")).collect();
    for name in &names {
        cluster.hosts[0].create(name).await.unwrap();
    }
    let cluster_id = cluster.hosts[0].manager().cluster_id();
    cluster.hosts[0].stop().await;
    cluster.hosts[1].kill();
    cluster.hosts[2].kill();
    for host in &mut cluster.hosts {
        assert!(has_state(&host.state_dir()));
        host.restart().await;
    }
    eventually("the managers are back", || async { cluster.hosts[1].create("zzz").await.ok() })
        .await;
    names.push("zzz".into());
    for host in &cluster.hosts {
        assert_eq!(host.services().await.unwrap(), names);
        assert_eq!(host.manager().cluster_id(), cluster_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_manager_restarts_and_leads_again() {
    let mut cluster = Cluster::start(1).await;
    cluster.hosts[0].create("web").await.unwrap();
    for _ in 0..2 {
        cluster.hosts[0].kill();
        cluster.hosts[0].restart().await;
        cluster.leader().await;
        assert_eq!(cluster.hosts[0].services().await.unwrap(), ["web"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_for_long_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::start_with(3, &frequent_snapshots()).await;
    let away = cluster.follower().await;
    cluster.hosts[away].kill();
    assert!(!has_file(&cluster.hosts[away].state_dir(), "snapshot"));
    let leader = cluster.leader().await;
    let names: Vec<String> = (0..120).map(|number| format!("web{number:03}")).collect();
    for name in &names {
        cluster.hosts[leader].create(name).await.unwrap();
    }
    cluster.hosts[away].restart().await;
    cluster.settled().await;
    assert!(has_file(&cluster.hosts[away].state_dir(), "snapshot"), "entries were purged");
    assert_eq!(cluster.hosts[away].services().await.unwrap(), names);
    // And it starts from that snapshot.
    cluster.hosts[away].kill();
    cluster.hosts[away].restart().await;
    assert_eq!(cluster.hosts[away].services().await.unwrap(), names);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_node_or_in_use_or_empty_is_refused() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    let another = host.founding(NewCluster::default());
    let again = Manager::init(host.config(), another).await.err().unwrap();
    assert!(matches!(again, ManagerError::InUse { .. }), "{again}");
    let running = Manager::restart(host.config()).await.err().unwrap();
    assert!(matches!(running, ManagerError::Locked { .. }), "{running}");
    host.kill();
    let other = Config { node_id: "n9".into(), ..host.config() };
    let other = Manager::restart(other).await.err().unwrap();
    let text =
        format!("{} belongs to node {}, this is node n9", host.state_dir().display(), host.node_id);
    assert_eq!(other.to_string(), text);
    let empty = Config { state_dir: host.folder.path().join("none"), ..host.config() };
    let empty = Manager::restart(empty).await.err().unwrap();
    assert!(matches!(empty, ManagerError::NoState { .. }), "{empty}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_or_log_is_named_and_not_used() {
    let mut cluster = Cluster::start_with(1, &frequent_snapshots()).await;
    let host = &mut cluster.hosts[0];
    for number in 0..40 {
        host.create(&format!("web{number}")).await.unwrap();
    }
    host.stop().await;
    let path = host.state_dir().join("snapshot");
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&path, &bad).unwrap();
    let damaged = Manager::restart(host.config()).await.err().unwrap();
    assert!(matches!(&damaged, ManagerError::Damaged { path: of, .. } if *of == path), "{damaged}");

    fs::write(&path, &good).unwrap();
    fs::write(host.state_dir().join("raft.redb"), [7; 4096]).unwrap();
    let damaged = Manager::restart(host.config()).await.err().unwrap();
    assert!(matches!(damaged, ManagerError::Damaged { .. }), "{damaged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_cannot_be_founded_leaves_nothing_behind() {
    let (mut host, _listener) = Host::new(1, &Timings::default()).await;
    let state_dir = host.state_dir();
    let pools = vec!["10.0.0.0/33".to_owned()];
    let wrong = host.founding(NewCluster { address_pools: pools, ..NewCluster::default() });
    let refused = Manager::init(host.config(), wrong).await.err().unwrap();
    assert!(matches!(refused, ManagerError::Refused { .. }), "{refused}");
    assert!(!has_state(&state_dir));
    let left: Vec<_> = fs::read_dir(&state_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["vault"], "the vault was there before");
    let (mut host, _listener) = Host::new(1, &Timings::default()).await;
    let right = host.founding(NewCluster::default());
    let vault = Vault::open(&state_dir, None).unwrap();
    let config = Config { state_dir, ..host.config_with(vault) };
    Manager::init(config, right).await.unwrap().shutdown().await;
}
