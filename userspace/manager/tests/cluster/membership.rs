//! Managers that come and go while the cluster runs.

use std::time::{Duration, Instant};

use shoal_api::{NodeRole, NodeSpec, RemoveNodeRequest, UpdateNodeRequest};
use shoal_manager::{Manager, Timings};
use tonic::{Code, Status};

use crate::agent::{Agent, renew};
use crate::harness::{Cluster, Host, PATIENCE, eventually};

/// Asks for a role, as `node promote` and `node demote` do.
pub async fn set_role(through: &Host, node_id: &str, role: NodeRole) -> Result<(), Status> {
    let node = through.node(node_id).await.expect("the node is known");
    let spec = NodeSpec { role: role.into(), ..node.spec.unwrap_or_default() };
    let version = node.meta.unwrap_or_default().version;
    let request = UpdateNodeRequest { node_id: node_id.into(), version, spec: Some(spec) };
    through.control().update_node(request).await.map(drop)
}

/// Follows a promotion as a daemon does: a manager's certificate first, then the manager.
async fn become_manager(host: &mut Host, listener: tokio::net::TcpListener, through: &Host) -> u64 {
    let credentials = host.member.credentials();
    let raft_id = renew(&credentials, host.member.channel(through)).await.unwrap();
    assert_eq!(credentials.identity().role, NodeRole::Manager);
    host.run(Manager::join(host.config(), raft_id), listener).await;
    host.manager().joined(PATIENCE).await.unwrap();
    raft_id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_promoted_and_the_leader_demoted_without_a_lost_write() {
    let mut cluster = Cluster::start(3).await;
    let timings = Timings::default();
    let (mut host, listener) = Host::new(4, &timings).await;
    let token = cluster.hosts[0].tokens().await.worker;
    let addr = host.addr.clone();
    host.member.join(&cluster.hosts[0], &addr, &token).await.unwrap();
    set_role(&cluster.hosts[0], &host.node_id, NodeRole::Manager).await.unwrap();
    let raft_id = become_manager(&mut host, listener, &cluster.hosts[0]).await;
    assert_eq!(raft_id, 4);
    cluster.hosts.push(host);

    let leader = cluster.leader().await;
    let node_id = cluster.hosts[leader].node_id.clone();
    cluster.hosts[leader].create("before").await.unwrap();
    let through = &cluster.hosts[(leader + 1) % 4];
    set_role(through, &node_id, NodeRole::Worker).await.unwrap();
    let start = Instant::now();
    // Through another manager: no call fails for want of a leader.
    through.create("meanwhile").await.unwrap();
    println!("a write while the leader was demoted took {:?}", start.elapsed());
    eventually("the old leader is a worker", || async {
        through.node(&node_id).await?.manager.is_none().then_some(())
    })
    .await;
    println!("the leader was demoted after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // Its manager is told nothing any more, and disturbs nobody.
    let new = eventually("another leads", || async {
        let leads = |(place, host): (usize, &Host)| {
            (place != leader && host.manager().is_leader()).then_some(place)
        };
        cluster.hosts.iter().enumerate().find_map(leads)
    })
    .await;
    cluster.hosts[leader].stop().await;
    cluster.hosts[new].create("after").await.unwrap();
    let services = cluster.hosts[new].services().await.unwrap();
    assert_eq!(services, ["after", "before", "meanwhile"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raft_id_is_never_used_twice() {
    let cluster = Cluster::start(3).await;
    let timings = Timings::default();
    let mut last = 3;
    let (mut host, listener) = Host::new(4, &timings).await;
    let token = cluster.hosts[0].tokens().await.worker;
    let addr = host.addr.clone();
    host.member.join(&cluster.hosts[0], &addr, &token).await.unwrap();
    let mut listener = Some(listener);
    for _ in 0..3 {
        set_role(&cluster.hosts[0], &host.node_id, NodeRole::Manager).await.unwrap();
        let listening = match listener.take() {
            Some(listener) => listener,
            None => {
                host.wire.open().await;
                tokio::net::TcpListener::bind(&host.inner).await.unwrap()
            }
        };
        let raft_id = become_manager(&mut host, listening, &cluster.hosts[0]).await;
        assert_eq!(raft_id, last + 1);
        last = raft_id;
        set_role(&cluster.hosts[0], &host.node_id, NodeRole::Worker).await.unwrap();
        eventually("the node is a worker", || async {
            cluster.hosts[0].node(&host.node_id).await?.manager.is_none().then_some(())
        })
        .await;
        host.stop().await;
        std::fs::remove_dir_all(host.state_dir()).unwrap();
        assert_eq!(
            renew(&host.member.credentials(), host.member.channel(&cluster.hosts[0]))
                .await
                .unwrap(),
            0
        );
    }
    cluster.hosts[1].create("after").await.unwrap();
    let (mut newcomer, listening) = Host::new(5, &timings).await;
    let (token, addr) = (cluster.hosts[0].tokens().await.manager, newcomer.addr.clone());
    let joined = newcomer.member.join(&cluster.hosts[0], &addr, &token).await.unwrap();
    assert_eq!(joined.raft_id, last + 1, "a newcomer does not get one that was given back either");
    newcomer.run(Manager::join(newcomer.config(), joined.raft_id), listening).await;
    newcomer.manager().joined(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_is_not_removed_before_it_is_demoted_and_the_last_one_never_demoted() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let request = RemoveNodeRequest { node_id: host.node_id.clone(), force: true };
    let refused = host.control().remove_node(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("must be demoted to worker before removal"), "{refused}");
    let refused = set_role(host, &host.node_id, NodeRole::Worker).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("last manager of the swarm"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demotion_that_would_cost_the_quorum_is_refused_and_reachability_is_shown() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (dead, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let _agents: Vec<Agent> =
        cluster.hosts.iter().map(|host| Agent::run(&host.member, &cluster)).collect();
    let list = |through: usize| {
        let mut control = cluster.hosts[through].control();
        async move {
            control.list_nodes(shoal_api::ListRequest {}).await.unwrap().into_inner().reachable
        }
    };
    for through in 0..3 {
        assert_eq!(list(through).await.len(), 3, "through {through}");
    }
    let dead_id = cluster.hosts[dead].node_id.clone();
    cluster.hosts[dead].kill();
    let cluster = &cluster;
    eventually("the dead manager is not reachable", || async {
        let mut control = cluster.hosts[other].control();
        let nodes = control.list_nodes(shoal_api::ListRequest {}).await.ok()?.into_inner();
        (nodes.reachable.len() == 2 && !nodes.reachable.contains(&dead_id)).then_some(())
    })
    .await;
    let refused = set_role(&cluster.hosts[leader], &cluster.hosts[other].node_id, NodeRole::Worker);
    let refused = refused.await.unwrap_err();
    assert!(refused.message().contains("loss of quorum"), "{refused}");
    // The dead one itself may go.
    set_role(&cluster.hosts[leader], &dead_id, NodeRole::Worker).await.unwrap();
    eventually("the dead manager is a worker", || async {
        cluster.hosts[leader].node(&dead_id).await?.manager.is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_leaves_is_out_of_raft_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let node_id = cluster.hosts[leader].node_id.clone();
    cluster.hosts[leader].manager().leave().await.unwrap();
    let other = (leader + 1) % 3;
    eventually("it is no manager any more", || async {
        cluster.hosts[other].node(&node_id).await?.manager.is_none().then_some(())
    })
    .await;
    cluster.hosts[leader].kill();
    // Two managers are left, both needed and both there.
    cluster.hosts[other].create("after").await.unwrap();
    assert_eq!(cluster.hosts[other].manager().reachable().await.unwrap().len(), 2);
}
