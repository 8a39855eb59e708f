//! A node without a certificate: what its token makes it believe, and what it is.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use common::{Cluster, Seen, Server, patient, seen};
use shoal_transport::{DialError, connect_with_token};

#[tokio::test]
async fn a_stranger_with_a_token_reaches_a_service_and_is_nobody() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let channel = connect_with_token(&server.addr, &cluster.token(), &patient()).await.unwrap();
    let nobody = Seen { identity: None, certificate: String::new() };
    assert_eq!(seen(&channel).await.unwrap(), nobody);
}

#[tokio::test]
async fn a_token_of_another_cluster_does_not_fit() {
    let server = Server::start(Cluster::found("alpha").manager()).await;
    let other = Cluster::found("beta");
    let error = connect_with_token(&server.addr, &other.token(), &patient()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("remote CA does not match fingerprint. Expected: {}", other.root.digest_hex())
    );
}

#[tokio::test]
async fn a_root_that_is_shown_and_did_not_sign_proves_nothing() {
    // Whoever has seen a cluster's root once can show it.
    let (cluster, impostor) = (Cluster::found("alpha"), Cluster::found("beta"));
    let credentials = impostor.manager();
    credentials.trust(&(impostor.roots_pem() + &cluster.roots_pem())).unwrap();
    let server = Server::start(credentials).await;
    let error = connect_with_token(&server.addr, &cluster.token(), &patient()).await.unwrap_err();
    assert!(matches!(error, DialError::Foreign { .. }), "{error:?}");
}

#[tokio::test]
async fn a_worker_cannot_pose_as_a_manager() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.worker()).await;
    let error = connect_with_token(&server.addr, &cluster.token(), &patient()).await.unwrap_err();
    assert_eq!(error, DialError::NotManager { addr: server.addr.clone() });
}

#[tokio::test]
async fn tokens_fit_throughout_a_roll_over_of_the_root() {
    let mut cluster = Cluster::found("alpha");
    let old = cluster.token();
    cluster.rotate();
    let server = Server::start(cluster.manager()).await;
    let reach = async |token| connect_with_token(&server.addr, token, &patient()).await;
    assert!(reach(&old).await.is_ok());
    // The manager's certificate is issued under the next root already.
    let next = Cluster { root: cluster.next.take().unwrap(), ..Cluster::found("alpha") };
    let new = next.token();
    assert!(reach(&new).await.is_ok());
    server.credentials.trust(&next.roots_pem()).unwrap();
    assert!(reach(&new).await.is_ok());
    assert!(matches!(reach(&old).await, Err(DialError::Fingerprint { .. })));
}
