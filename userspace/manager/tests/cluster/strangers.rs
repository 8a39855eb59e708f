//! Raft messages that are meant for somebody else.

use shoal_api::RaftMessage;
use shoal_api::raft_client::RaftClient;
use tonic::Code;

use crate::harness::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_another_manager_or_cluster_is_not_answered() {
    let cluster = Cluster::start(1).await;
    let cluster_id = cluster.hosts[0].manager().cluster_id().unwrap();
    let mut client = RaftClient::new(cluster.hosts[0].channel());
    // The payload of neither is looked at: a right one would change who votes for whom.
    let another = format!("this manager is of cluster {cluster_id}, not other");
    for (to, cluster_id, code, expected) in [
        (2, cluster_id, Code::FailedPrecondition, "this is manager 1, not 2".to_owned()),
        (1, "other".into(), Code::PermissionDenied, another),
    ] {
        let message = RaftMessage { version: 1, payload: Vec::new(), to, cluster_id };
        for refused in [
            client.vote(message.clone()).await.unwrap_err(),
            client.pre_vote(message.clone()).await.unwrap_err(),
            client.append_entries(message.clone()).await.unwrap_err(),
            client.transfer_leader(message.clone()).await.unwrap_err(),
            client.install_snapshot(tokio_stream::iter([message.clone()])).await.unwrap_err(),
        ] {
            assert_eq!((refused.code(), refused.message()), (code, &*expected));
        }
    }
}
