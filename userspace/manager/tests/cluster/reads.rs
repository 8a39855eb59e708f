//! Watches and status.

use shoal_api::{EventAction, StatusRequest, WatchRequest, WatchResponse, object};
use shoal_manager::Timings;
use tonic::{Code, Streaming};

use crate::harness::{Cluster, Host, PATIENCE};

async fn watch(host: &Host, after_index: u64) -> Streaming<WatchResponse> {
    host.control().watch(WatchRequest { after_index }).await.unwrap().into_inner()
}

/// The next created service and the index of its batch.
async fn next_service(events: &mut Streaming<WatchResponse>) -> (u64, String) {
    loop {
        let next = tokio::time::timeout(PATIENCE, events.message()).await.unwrap();
        let batch = next.unwrap().expect("a watch does not end by itself");
        let created = batch.events.iter().find_map(|event| {
            let object = event.object.as_ref()?.object.as_ref()?;
            match object {
                object::Object::Service(service) if event.action() == EventAction::Create => {
                    Some(service.name().to_owned())
                }
                _ => None,
            }
        });
        if let Some(name) = created {
            return (batch.index, name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_after_its_index_on_another_manager() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut events = watch(&cluster.hosts[leader], 0).await;
    for name in ["a", "b", "c"] {
        cluster.hosts[leader].create(name).await.unwrap();
    }
    let (index, name) = next_service(&mut events).await;
    assert_eq!(name, "a");
    cluster.settled().await;
    let mut resumed = watch(&cluster.hosts[follower], index).await;
    assert_eq!(next_service(&mut resumed).await.1, "b");
    assert_eq!(next_service(&mut resumed).await.1, "c");
    cluster.hosts[follower].create("d").await.unwrap();
    assert_eq!(next_service(&mut resumed).await.1, "d");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_the_snapshot_must_resync() {
    let timings = Timings { snapshot_after: 10, kept_entries: 1, ..Timings::default() };
    let mut cluster = Cluster::start_with(1, &timings).await;
    for number in 0..30 {
        cluster.hosts[0].create(&format!("web{number}")).await.unwrap();
    }
    cluster.hosts[0].stop().await;
    cluster.hosts[0].restart().await;
    cluster.leader().await;
    let request = WatchRequest { after_index: 2 };
    let late = cluster.hosts[0].control().watch(request).await.unwrap_err();
    assert_eq!(late.code(), Code::OutOfRange);
    assert!(late.message().ends_with("resync"), "{}", late.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_through_a_follower_names_the_leader() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let status = cluster.hosts[follower].control().status(StatusRequest {}).await.unwrap();
    let status = status.into_inner();
    assert_eq!(status.leader_id, cluster.hosts[leader].node_id);
    assert!(status.applied_index > 0);
}
