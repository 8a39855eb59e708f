//! The ways back: from one manager when the others are lost, and from a backup when all are.

use std::fs;

use futures::TryStreamExt;
use shoal_api::NodeRole;
use shoal_identity::{BackupKey, Key};
use shoal_manager::backup::{self, NodeFiles};
use shoal_manager::{Config, Manager, ManagerError, Timings};
use tokio::net::TcpListener;

use crate::harness::{Cluster, Host, eventually};

fn key() -> BackupKey {
    BackupKey::from_bytes([9; 32])
}

fn files(host: &Host) -> NodeFiles {
    let credentials = host.member.credentials();
    NodeFiles {
        chain_pem: host.member.chain_pem.clone(),
        key_pem: host.member.key.to_pem(),
        roots_pem: credentials.roots_pem(),
        record: b"{}".to_vec(),
    }
}

async fn backed_up(host: &Host) -> Vec<u8> {
    let pieces = host.manager().backup(key(), files(host)).await.unwrap();
    pieces.try_concat().await.unwrap()
}

/// Starts the host's state as the only manager of a cluster.
async fn force(host: &mut Host, config: Config) {
    let inner = host.inner.clone();
    let bind = || async { TcpListener::bind(&inner).await.ok() };
    let listener = eventually("the port is free", bind).await;
    host.wire.open().await;
    let node = host.join_request();
    host.run(Manager::force_new_cluster(config, node), listener).await;
}

/// The one manager leads a cluster with these services and its old workers, and goes on.
async fn goes_on_alone(host: &Host, services: &[String], workers: &[&str]) {
    eventually("it leads alone", || async { host.create("after").await.ok() }).await;
    let mut wanted = services.to_vec();
    wanted.push("after".into());
    wanted.sort();
    assert_eq!(host.services().await.unwrap(), wanted);
    let managers = eventually("the other managers are workers", || async {
        let nodes = host.control().list_nodes(shoal_api::ListRequest {}).await.ok()?.into_inner();
        let managers: Vec<_> = nodes
            .nodes
            .iter()
            .filter(|node| node.is_manager())
            .map(|node| node.id.clone())
            .collect();
        let wishes = nodes.nodes.iter().filter(|node| node.role() == NodeRole::Manager).count();
        assert!(workers.iter().all(|id| nodes.nodes.iter().any(|node| node.id == *id)));
        (managers.len() == 1 && wishes == 1).then_some(managers)
    })
    .await;
    assert_eq!(managers, std::slice::from_ref(&host.node_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_manager_of_three_goes_on_alone_and_more_join_it() {
    let mut cluster = Cluster::start(3).await;
    let worker = cluster.worker(9).await;
    let names: Vec<String> = (0..5).map(|number| format!("web{number}")).collect();
    for name in &names {
        cluster.hosts[0].create(name).await.unwrap();
    }
    cluster.settled().await;
    let cluster_id = cluster.hosts[0].manager().cluster_id();
    let tokens = cluster.hosts[0].tokens().await;
    let place = cluster.follower().await;
    for other in 0..3 {
        if other != place {
            cluster.hosts[other].kill();
        }
    }
    // It cannot write, but it can be backed up, and it can be made to go on.
    let backup = backed_up(&cluster.hosts[place]).await;
    assert!(backup::open(backup.as_slice(), &key()).unwrap().index() > 0);
    let mut host = cluster.hosts.swap_remove(place);
    host.stop().await;
    let config = host.config();
    force(&mut host, config).await;
    goes_on_alone(&host, &names, &[&worker.node_id]).await;
    assert_eq!(host.manager().cluster_id(), cluster_id);
    assert_eq!(host.tokens().await, tokens);

    // Again from its disk, and with another manager.
    host.kill();
    host.restart().await;
    let mut alone = Cluster { hosts: vec![host] };
    alone.leader().await;
    alone.add_as(7, &Timings::default()).await;
    let node = alone.hosts[0].node(&alone.hosts[1].node_id).await.unwrap();
    assert!(node.manager.unwrap().raft_id > 4, "an id that nobody had");
    alone.hosts[1].create("through-the-new-one").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_a_cluster_back_whose_managers_are_all_lost() {
    let mut cluster = Cluster::start(3).await;
    let worker = cluster.worker(9).await;
    let names: Vec<String> = (0..5).map(|number| format!("web{number}")).collect();
    for name in &names {
        cluster.hosts[0].create(name).await.unwrap();
    }
    cluster.settled().await;
    let place = cluster.follower().await;
    let backup = backed_up(&cluster.hosts[place]).await;
    cluster.hosts[0].create("too-late").await.unwrap();
    let cluster_id = cluster.hosts[place].manager().cluster_id().unwrap();
    let mut host = cluster.hosts.swap_remove(place);
    drop(cluster);
    host.stop().await;
    fs::remove_dir_all(host.state_dir()).unwrap();

    let restored = backup::open(backup.as_slice(), &key()).unwrap();
    assert_eq!((restored.cluster_id(), restored.node_id()), (&*cluster_id, &*host.node_id));
    assert!(restored.files() == files(&host));
    assert_eq!(Key::from_pem(&restored.files().key_pem).unwrap().node_id(), host.node_id);
    let vault = restored.write(&host.state_dir()).unwrap();
    let twice = restored.write(&host.state_dir()).unwrap_err();
    assert!(matches!(twice, ManagerError::InUse { .. }), "{twice}");
    let config = host.config_with(vault);
    force(&mut host, config).await;
    goes_on_alone(&host, &names, &[&worker.node_id]).await;
    assert_eq!(host.manager().cluster_id(), Some(cluster_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_lost_a_file_says_which_and_makes_none_anew() {
    let timings = Timings { snapshot_after: 10, kept_entries: 2, ..Timings::default() };
    let mut cluster = Cluster::start_with(1, &timings).await;
    let host = &mut cluster.hosts[0];
    for number in 0..30 {
        host.create(&format!("web{number}")).await.unwrap();
    }
    let snapshot = host.state_dir().join("snapshot");
    eventually("there is a snapshot", || async { snapshot.exists().then_some(()) }).await;
    host.stop().await;
    for name in ["raft.redb", "snapshot", "vault"] {
        let path = host.state_dir().join(name);
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let lost = host.refusal().await;
        assert!(lost.starts_with(&format!("{} is missing", path.display())), "{lost}");
        assert!(!path.exists());
        fs::write(&path, kept).unwrap();
    }
    host.restart().await;
    eventually("with all files it is back", || async { host.create("zzz").await.ok() }).await;
}
