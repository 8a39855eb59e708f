//! Tokens and roots that change while the cluster is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shoal_api::control_client::ControlClient;
use shoal_api::{
    CaSpec, Cluster as ClusterObject, ClusterSpec, UpdateClusterRequest, UpdateClusterResponse,
};
use shoal_api::{GetClusterRequest, WatchRequest};
use shoal_identity::{Csr, Key, Root, csr};
use shoal_manager::{Manager, NewCluster, Timings};
use shoal_transport::{Credentials, Dial};
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::harness::{Cluster, Host, Member, PATIENCE, eventually, now};

async fn update(
    through: &Host,
    change: impl FnOnce(&mut UpdateClusterRequest),
) -> Result<ClusterObject, Status> {
    let now = through.cluster().await;
    let mut request = UpdateClusterRequest {
        version: now.meta.unwrap_or_default().version,
        spec: now.spec,
        ..UpdateClusterRequest::default()
    };
    change(&mut request);
    let response = through.control().update_cluster(request).await?;
    let UpdateClusterResponse { cluster } = response.into_inner();
    Ok(cluster.expect("the cluster comes back"))
}

fn force(request: &mut UpdateClusterRequest) {
    let spec = request.spec.get_or_insert_with(ClusterSpec::default);
    spec.ca.get_or_insert_with(CaSpec::default).force_rotate += 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_lets_nobody_in_any_more_and_the_new_one_does() {
    let cluster = Cluster::start(3).await;
    let host = &cluster.hosts[cluster.follower().await];
    let old = host.tokens().await;
    let new = update(host, |request| request.rotate_worker_token = true).await.unwrap();
    let new = new.root_ca.unwrap().tokens.unwrap();
    assert_ne!(new.worker, old.worker);
    assert_eq!(new.manager, old.manager, "the other one stays");
    for through in &cluster.hosts {
        let refused = Member::new(8).join(through, "127.0.0.1:1", &old.worker).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert_eq!(refused.message(), "invalid join token");
    }
    assert!(host.node(&Member::new(8).node_id).await.is_none());
    Member::new(8).join(host, "127.0.0.1:1", &new.worker).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_change_under_joins_and_each_join_is_let_in_or_refused() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let joins = async {
        let mut refused = 0;
        for number in 20..50 {
            let token = host.tokens().await.worker;
            match Member::new(number).join(host, "127.0.0.1:1", &token).await {
                Ok(_) => {}
                Err(status) => {
                    assert_eq!(status.message(), "invalid join token");
                    refused += 1;
                }
            }
        }
        refused
    };
    let rotations = async {
        for _ in 0..20 {
            update(host, |request| request.rotate_worker_token = true).await.unwrap();
        }
    };
    let (refused, ()) = tokio::join!(joins, rotations);
    println!("{refused} of 30 joins met a token that was just rotated");
    let nodes = host.control().list_nodes(shoal_api::ListRequest {}).await.unwrap().into_inner();
    assert_eq!(nodes.nodes.len(), 1 + 30 - refused, "a refused join leaves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_shown_without_its_keys_and_its_unlock_key_to_managers_only() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let locked = update(host, |request| {
        request.spec.get_or_insert_with(ClusterSpec::default).autolock = true;
    });
    let locked = locked.await.unwrap();
    assert_eq!(locked.unlock_key, "");
    for shown in [locked, host.cluster().await] {
        let root_ca = shown.root_ca.unwrap();
        assert_eq!(root_ca.signing.unwrap().key_pem, "");
        assert!(root_ca.tokens.unwrap().worker.starts_with("SWMTKN-1-"));
    }
    let key = host.control().get_unlock_key(shoal_api::GetUnlockKeyRequest {}).await.unwrap();
    let key = key.into_inner().unlock_key;
    assert!(key.starts_with("SWMKEY-1-"), "{key}");
    update(host, |request| request.rotate_unlock_key = true).await.unwrap();
    let next = host.control().get_unlock_key(shoal_api::GetUnlockKeyRequest {}).await.unwrap();
    assert_ne!(next.into_inner().unlock_key, key);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_rolls_over_to_a_new_root_without_a_failed_call() {
    let mut cluster = Cluster::start(3).await;
    let workers = [cluster.worker(11).await, cluster.worker(12).await];
    let hosts = cluster.hosts.iter().map(|host| &host.member);
    let agents: Vec<Agent> =
        hosts.chain(&workers).map(|member| Agent::run(member, &cluster)).collect();
    let old = cluster.hosts[0].cluster().await.root_ca.unwrap();

    // Users of every manager, each call over a connection of its own, so that each makes a
    // handshake under whatever the roots are by then.
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers = cluster.hosts.iter().enumerate().map(|(place, host)| {
        let (credentials, inner) = (host.member.credentials(), host.inner.clone());
        let (stop, calls) = (stop.clone(), calls.clone());
        tokio::spawn(async move {
            let dial = Dial::default();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let channel = shoal_transport::connect(&credentials, &inner, &dial).await.unwrap();
                let mut control = ControlClient::new(channel);
                let spec = Some(crate::harness::spec(&format!("s{place}-{number}"), 0));
                control
                    .create_service(shoal_api::CreateServiceRequest { spec })
                    .await
                    .unwrap_or_else(|failed| panic!("through {place}: {failed}"));
                calls.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
        })
    });
    let callers: Vec<_> = callers.collect();

    let start = Instant::now();
    let host = &cluster.hosts[cluster.follower().await];
    for round in 1..=2 {
        let rotating = update(host, force).await.unwrap().root_ca.unwrap();
        let next = rotating.rotation.expect("it takes the nodes' word to end").digest;
        let done = eventually("every node has a certificate of the new root", || async {
            let root_ca = host.cluster().await.root_ca.unwrap();
            root_ca.rotation.is_none().then_some(root_ca)
        })
        .await;
        println!("round {round}: the new root was everywhere after {:?}", start.elapsed());
        assert_eq!(done.digest, next);
        assert_ne!(done.digest, old.digest);
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    println!("{} calls meanwhile, none failed", calls.load(Ordering::Relaxed));
    assert!(calls.load(Ordering::Relaxed) > 10);

    // Whoever knows the old root only is not let in; a newcomer with the new token is.
    let tokens = host.tokens().await;
    assert_ne!(Some(&tokens), old.tokens.as_ref());
    let stale = shoal_identity::JoinToken::parse(&old.tokens.unwrap().worker).unwrap();
    let dial = Dial::default();
    let refused = shoal_transport::connect_with_token(&host.inner, &stale, &dial).await;
    let refused = refused.expect_err("the old token pins the old root").to_string();
    assert!(refused.contains("remote CA does not match fingerprint"), "{refused}");
    Member::new(13).join(host, "127.0.0.1:1", &tokens.worker).await.unwrap();
    drop(agents);

    // And a manager that comes back has what it needs on its disk.
    let again = cluster.follower().await;
    cluster.hosts[again].kill();
    cluster.hosts[again].restart().await;
    cluster.hosts[again].manager().joined(PATIENCE).await.unwrap();
    eventually("writes go on through it", || async {
        cluster.hosts[again].create("after").await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_cannot_sign_is_refused_before_anything_changes() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let before = host.cluster().await.root_ca;
    let broken = update(host, |request| {
        force(request);
        let cert_pem = "no certificate".into();
        request.root = Some(shoal_api::SigningCa { cert_pem, key_pem: "no key".into() });
    });
    let refused = broken.await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(host.cluster().await.root_ca, before);
    // An update of what another one has changed since is out of sequence.
    update(host, |request| request.rotate_worker_token = true).await.unwrap();
    let stale = update(host, |request| request.version = 1).await.unwrap_err();
    assert!(stale.message().contains("update out of sequence"), "{stale}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_opened_by_a_stolen_root_ends_with_the_roll_over() {
    let stolen = Root::found(&[9; 32], now());
    let (mut host, listener) = Host::new(1, &Timings::default()).await;
    let new = NewCluster { root: Some(stolen.signing_ca()), ..NewCluster::default() };
    let founding = host.founding(new);
    host.run(Manager::init(host.config(), founding), listener).await;
    let cluster = Cluster { hosts: vec![host] };
    let host = &cluster.hosts[0];
    let _agent = Agent::run(&host.member, &cluster);
    // Whoever has the root's key is whom he likes.
    let key = Key::from_seed(&[5; 32]);
    let request = Csr::parse(&csr::request(&key)).unwrap();
    let (identity, life) = (host.member.credentials().identity(), Duration::from_secs(86_400));
    let chain = stolen.issue(&request, &identity, now(), life, [1; 16], "");
    let thief = Credentials::new(&chain, &key, &stolen.cert_pem()).unwrap();
    let channel = shoal_transport::connect(&thief, &host.inner, &Dial::default()).await.unwrap();
    let mut control = ControlClient::new(channel);
    control.get_cluster(GetClusterRequest {}).await.unwrap();
    let mut events = control.watch(WatchRequest::default()).await.unwrap().into_inner();

    update(host, force).await.unwrap();
    let refused = eventually("its certificate is worth nothing", || async {
        let mut control = control.clone();
        control.get_cluster(GetClusterRequest {}).await.err()
    })
    .await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(host.cluster().await.root_ca.unwrap().rotation.is_none(), "not before the end");
    host.create("unseen").await.unwrap();
    let end = loop {
        match tokio::time::timeout(PATIENCE, events.message()).await.unwrap() {
            Ok(Some(seen)) => assert!(!format!("{seen:?}").contains("unseen"), "{seen:?}"),
            Ok(None) => panic!("it ends with a reason"),
            Err(reason) => break reason,
        }
    };
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
}
