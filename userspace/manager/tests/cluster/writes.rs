//! Writes and joins through any manager.

use std::time::Instant;

use shoal_api::{CreateServiceRequest, NodeRole, RemoveServiceRequest, UpdateServiceRequest};
use tonic::Code;

use crate::harness::{Cluster, Member, spec};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_each_manager_is_read_through_each() {
    let cluster = Cluster::start(3).await;
    for (place, host) in cluster.hosts.iter().enumerate() {
        host.create(&format!("web{place}")).await.unwrap();
    }
    for host in &cluster.hosts {
        assert_eq!(host.services().await.unwrap(), ["web0", "web1", "web2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_back_through_a_follower_in_dockers_words() {
    let cluster = Cluster::start(3).await;
    let follower = &cluster.hosts[cluster.follower().await];
    let service = follower.create("web").await.unwrap();
    let taken = follower.create("web").await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let text = "name conflicts with an existing object: service web already exists";
    assert_eq!(taken.message(), text);

    let mut control = follower.control();
    let stale = UpdateServiceRequest {
        service_id: service.id.clone(),
        version: 1,
        spec: Some(spec("web", 2)),
    };
    let stale = control.update_service(stale).await.unwrap_err();
    assert_eq!((stale.code(), stale.message()), (Code::Aborted, "update out of sequence"));
    let gone = RemoveServiceRequest { service_id: "nope".into() };
    let gone = control.remove_service(gone).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "service nope not found"));
    control.remove_service(RemoveServiceRequest { service_id: service.id }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_joins_through_a_follower_and_gets_no_raft_id() {
    let cluster = Cluster::start(3).await;
    let follower = &cluster.hosts[cluster.follower().await];
    let token = follower.tokens().await.worker;
    let mut worker = Member::new(9);
    let response = worker.join(follower, "127.0.0.1:9", &token).await.unwrap();
    assert_eq!(response.raft_id, 0);
    assert_eq!(worker.credentials().identity().role, NodeRole::Worker);
    assert_eq!(Some(response.cluster_id), follower.manager().cluster_id());
    let mut managers: Vec<_> = cluster.hosts.iter().map(|host| host.addr.clone()).collect();
    managers.sort();
    let mut told = response.managers;
    told.sort();
    assert_eq!(told, managers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_created_within_milliseconds() {
    let cluster = Cluster::start(3).await;
    for place in [cluster.leader().await, cluster.follower().await] {
        let host = &cluster.hosts[place];
        let mut control = host.control();
        let mut micros = Vec::new();
        for number in 0..30 {
            let spec = Some(spec(&format!("s{place}-{number}"), 3));
            let start = Instant::now();
            control.create_service(CreateServiceRequest { spec }).await.unwrap();
            micros.push(start.elapsed().as_micros());
        }
        micros.sort_unstable();
        let (median, worst) = (micros[micros.len() / 2], micros[micros.len() - 1]);
        let leads = host.manager().is_leader();
        println!("create service: median {median} us, worst {worst} us, through leader: {leads}");
        assert!(median < 250_000, "{micros:?}");
    }
}
