//! Managers that are reached elsewhere than before.

use std::time::Instant;

use shoal_manager::Manager;
use tokio::net::TcpListener;

use crate::harness::{Cluster, eventually};
use crate::wire::Wire;

#[tokio::test(flavor = "multi_thread")]
async fn managers_that_all_moved_find_each_other_by_one_name() {
    let mut cluster = Cluster::start(3).await;
    cluster.hosts[0].create("before").await.unwrap();
    for host in &mut cluster.hosts {
        host.kill();
    }
    // Every one has another address, and only the first one's is known by a name.
    let mut listeners = Vec::new();
    for (place, host) in cluster.hosts.iter_mut().enumerate() {
        let listener = TcpListener::bind(format!("127.0.0.{}:0", place + 11)).await.unwrap();
        host.inner = listener.local_addr().unwrap().to_string();
        host.wire = Wire::new(host.inner.clone()).await;
        assert_ne!(host.addr, host.wire.addr);
        host.addr = host.wire.addr.clone();
        listeners.push(listener);
    }
    let port = cluster.hosts[0].addr.rsplit(':').next().unwrap().to_owned();
    let start = Instant::now();
    for (host, listener) in cluster.hosts.iter_mut().zip(listeners) {
        host.join_addrs = vec![format!("localhost:{port}"), "no-such-host.invalid:2377".into()];
        host.run(Manager::restart(host.config()), listener).await;
    }
    let leader = cluster.leader().await;
    println!("managers that all moved had a leader after {:?}", start.elapsed());
    for (place, host) in cluster.hosts.iter().enumerate() {
        let name = format!("through{place}");
        eventually("writes go on", || async { host.create(&name).await.ok() }).await;
    }
    // The store says where they are now, for the agents.
    let mut addrs: Vec<String> = cluster.hosts.iter().map(|host| host.addr.clone()).collect();
    addrs.sort();
    eventually("the new addresses are written down", || async {
        let mut known = Vec::new();
        for host in &cluster.hosts {
            known.push(cluster.hosts[leader].node(&host.node_id).await?.manager?.addr);
        }
        known.sort();
        (known == addrs).then_some(())
    })
    .await;
    // And Raft's membership too: a restart without any name finds them.
    cluster.settled().await;
    let away = cluster.follower().await;
    cluster.hosts[away].stop().await;
    cluster.hosts[away].join_addrs.clear();
    cluster.hosts[away].restart().await;
    cluster.settled().await;
    cluster.hosts[away].create("after").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_manager_that_moved_is_found_by_the_others() {
    let mut cluster = Cluster::start(3).await;
    let away = cluster.follower().await;
    cluster.hosts[away].kill();
    let host = &mut cluster.hosts[away];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    host.inner = listener.local_addr().unwrap().to_string();
    host.wire = Wire::new(host.inner.clone()).await;
    host.addr = host.wire.addr.clone();
    let start = Instant::now();
    host.run(Manager::restart(host.config()), listener).await;
    let leader = cluster.leader().await;
    cluster.hosts[leader].create("since").await.unwrap();
    cluster.settled().await;
    println!("a manager that moved had caught up after {:?}", start.elapsed());
    let moved = cluster.hosts[away].addr.clone();
    let node_id = cluster.hosts[away].node_id.clone();
    eventually("its new address is written down", || async {
        let manager = cluster.hosts[leader].node(&node_id).await?.manager?;
        (manager.addr == moved).then_some(())
    })
    .await;
    assert_eq!(cluster.hosts[away].services().await.unwrap(), ["since"]);
}
