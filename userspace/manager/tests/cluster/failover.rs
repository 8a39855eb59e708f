//! A leader that dies, and a majority that does.

use std::time::{Duration, Instant};

use shoal_api::object::Object;
use shoal_api::{ListRequest, NodeState, SessionRequest, Task, WatchRequest};
use tonic::Code;

use crate::harness::{Cluster, description, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn another_leads_soon_after_the_leader_died_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        let name = format!("before{number:02}");
        cluster.hosts[leader].create(&name).await.unwrap();
        acknowledged.push(name);
    }
    cluster.hosts[leader].kill();
    let killed = Instant::now();
    let other = cluster.hosts.iter().find(|host| host.is_running()).unwrap();
    // One call: the follower itself finds the new leader.
    other.create("since").await.unwrap();
    let without = killed.elapsed();
    println!("fail-over: first write acknowledged {without:?} after the leader died");
    acknowledged.push("since".into());
    for host in cluster.hosts.iter().filter(|host| host.is_running()) {
        assert_eq!(host.services().await.unwrap(), acknowledged);
    }
    assert!(without < Duration::from_secs(4), "{without:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_in_order_hands_over_at_once() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.hosts[leader].create("before").await.unwrap();
    let start = Instant::now();
    cluster.hosts[leader].stop().await;
    let other = cluster.hosts.iter().find(|host| host.is_running()).unwrap();
    other.create("since").await.unwrap();
    println!("hand-over: first write acknowledged {:?} after the order", start.elapsed());
    assert_eq!(other.services().await.unwrap(), ["before", "since"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_of_a_dead_leader_is_down_three_seconds_after_its_death() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let node_id = cluster.hosts[leader].node_id.clone();
    let request = SessionRequest {
        node_id: node_id.clone(),
        description: Some(description(&node_id)),
        data_path_addr: "127.0.0.1".into(),
        ..SessionRequest::default()
    };
    let session = cluster.hosts[leader].dispatcher().session(request).await.unwrap();
    wait_for_state(&cluster, leader, &node_id, NodeState::Ready).await;
    cluster.hosts[leader].kill();
    let killed = Instant::now();
    drop(session);
    let other = cluster.hosts.iter().position(crate::harness::Host::is_running).unwrap();
    wait_for_state(&cluster, other, &node_id, NodeState::Down).await;
    let down = killed.elapsed();
    println!("the dead leader's node was down {down:?} after its death");
    assert!(down > Duration::from_secs(2), "not before three heartbeats are missed: {down:?}");
    assert!(down < Duration::from_secs(5), "{down:?}");
}

async fn wait_for_state(cluster: &Cluster, through: usize, node_id: &str, state: NodeState) {
    eventually("the node changes its state", || async {
        let nodes = cluster.hosts[through].control().list_nodes(ListRequest {}).await.ok()?;
        let nodes = nodes.into_inner().nodes;
        let node = nodes.iter().find(|node| node.id == node_id)?;
        (node.state() == state).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_cannot_be_reached_slows_nobody_and_is_back_soon_after_it_can() {
    let cluster = Cluster::start(3).await;
    let (leader, away) = (cluster.leader().await, cluster.follower().await);
    let other = 3 - leader - away;
    cluster.hosts[other].create("before").await.unwrap();
    cluster.hosts[away].wire.cut();
    // Long enough for the time-outs, back-offs and elections that the cut one tries.
    let cut = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut number = 0;
    while cut.elapsed() < Duration::from_secs(6) {
        let start = Instant::now();
        cluster.hosts[other].create(&format!("web{number}")).await.unwrap();
        slowest = slowest.max(start.elapsed());
        number += 1;
    }
    assert!(cluster.hosts[leader].manager().is_leader(), "the leader stays");
    assert!(cluster.hosts[away].manager().applied_index() < 20, "the cut one hears nothing");
    cluster.hosts[away].wire.heal();
    let healed = Instant::now();
    cluster.settled().await;
    let back = healed.elapsed();
    println!("cut off for 6 s: {number} writes, slowest {slowest:?}; back after {back:?}");
    assert!(cluster.hosts[leader].manager().is_leader(), "the one that is back disturbs nobody");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(back < Duration::from_secs(3), "{back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_that_lost_each_other_go_on_soon_after_they_are_together_again() {
    let cluster = Cluster::start(3).await;
    cluster.hosts[0].create("before").await.unwrap();
    for host in &cluster.hosts {
        host.wire.cut();
    }
    // Nobody can acknowledge anything: each tries to its time-out.
    let (a, b, c) = tokio::join!(
        cluster.hosts[0].create("a"),
        cluster.hosts[1].create("b"),
        cluster.hosts[2].create("c"),
    );
    for refused in [a, b, c] {
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    }
    for host in &cluster.hosts {
        host.wire.heal();
    }
    let healed = Instant::now();
    for (place, host) in cluster.hosts.iter().enumerate() {
        let name = format!("since{place}");
        eventually("writes go on", || async { host.create(&name).await.ok() }).await;
    }
    let back = healed.elapsed();
    println!(
        "all cut off from each other: writes through each {back:?} after the wires were whole"
    );
    assert!(back < Duration::from_secs(6), "{back:?}");
    let services = cluster.hosts[0].services().await.unwrap();
    for name in ["before", "since0", "since1", "since2"] {
        assert!(services.contains(&name.into()), "{name} of {services:?}");
    }
    for host in &cluster.hosts {
        assert_eq!(host.services().await.unwrap(), services, "one history");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_every_call_says_so_and_it_passes_when_there_is_one_again() {
    const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers \
        are online. Make sure more than half of the managers are online.";
    let mut cluster = Cluster::start(3).await;
    cluster.hosts[0].create("before").await.unwrap();
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let third = 3 - leader - follower;
    // Once the leader is left alone, once a follower.
    for (left, killed) in [(leader, [follower, third]), (follower, [leader, third])] {
        for host in killed {
            cluster.hosts[host].kill();
        }
        let start = Instant::now();
        let (read, write) =
            tokio::join!(cluster.hosts[left].services(), cluster.hosts[left].create("lost"));
        let took = start.elapsed();
        let (read, write) = (read.unwrap_err(), write.unwrap_err());
        assert_eq!((read.code(), read.message()), (Code::Unavailable, NO_LEADER));
        assert_eq!(write.code(), Code::Unavailable);
        if left == leader {
            // It had taken the write.
            assert!(write.message().contains("look whether it took effect"), "{write}");
        }
        assert!(took < Duration::from_secs(10), "{took:?}");
        for host in killed {
            cluster.hosts[host].restart().await;
        }
        eventually("writes go on", || async {
            cluster.hosts[left].create(&format!("after{left}")).await.ok()
        })
        .await;
    }
    let services = cluster.hosts[third].services().await.unwrap();
    assert!(services.contains(&"before".into()), "{services:?}");
    // A leader that leads again in its old term makes nothing a second time.
    let tasks = cluster.hosts[third].control().list_tasks(ListRequest {}).await.unwrap();
    let mut slots: Vec<String> = tasks.into_inner().tasks.iter().map(Task::name).collect();
    slots.sort();
    let all = slots.len();
    slots.dedup();
    assert_eq!(slots.len(), all, "a task twice: {slots:?} of {services:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_ends_its_sessions_and_declares_nobody_down() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let host = &cluster.hosts[leader];
    let member = &cluster.hosts[cluster.follower().await].member;
    let node_id = member.node_id.clone();
    let request = SessionRequest {
        node_id: node_id.clone(),
        description: Some(description(&node_id)),
        data_path_addr: "127.0.0.1".into(),
        ..SessionRequest::default()
    };
    let open = member.dispatcher(host).session(request).await.unwrap();
    let mut session = open.into_inner();
    wait_for_state(&cluster, leader, &node_id, NodeState::Ready).await;
    let mut watch = host.control().watch(WatchRequest::default()).await.unwrap().into_inner();
    for host in &cluster.hosts {
        host.wire.cut();
    }
    let cut = Instant::now();
    // The node's heartbeats stop at the same moment, as when the leader's link is out.
    while let Ok(Some(_)) = session.message().await {}
    let ended = cut.elapsed();
    println!("a leader that lost its quorum ended its sessions after {ended:?}");
    assert!(ended < Duration::from_secs(4), "{ended:?}");
    eventually("it serves no more", || async { (!host.manager().is_leader()).then_some(()) }).await;
    for host in &cluster.hosts {
        host.wire.heal();
    }
    cluster.leader().await;
    cluster.settled().await;
    // What the leader had staged while it was alone would be among the first writes.
    let through = &cluster.hosts[leader];
    eventually("writes go on", || async { through.create("since").await.ok() }).await;
    loop {
        let batch = watch.message().await.unwrap().unwrap();
        let objects = batch.events.into_iter().filter_map(|event| event.object?.object);
        let mut done = false;
        for object in objects {
            match object {
                Object::Node(node) => assert_ne!(node.state(), NodeState::Down, "{}", node.id),
                Object::Service(service) => done |= service.name() == "since",
                _ => {}
            }
        }
        if done {
            break;
        }
    }
}
