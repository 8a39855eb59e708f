//! Who may call what: every method that the protos name, asked by everybody.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_api::control_client::ControlClient;
use shoal_api::leader_client::LeaderClient;
use shoal_api::raft_client::RaftClient;
use shoal_api::{
    AnnounceRequest, Caller, CreateServiceRequest, ForwardRequest, GetUnlockKeyRequest,
    ManagerAddress, RaftMessage, RenewWrite, TaskStatusUpdate, UpdateTaskStatusRequest, Write,
    write,
};
use shoal_api::{
    Node, NodeRole, NodeSpec, RemoveNodeRequest, SessionRequest, UpdateNodeRequest, WatchRequest,
};
use shoal_identity::{Csr, Identity, JoinToken, Key, Root, csr};
use shoal_manager::{Manager, NewCluster, Timings};
use shoal_transport::{Credentials, Dial, connect_with_token};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::harness::{Cluster, Host, Member, PATIENCE, eventually, now};

/// Every file, so that a new service is asked for, too.
const PROTOS: [&str; 4] = [
    include_str!("../../../../mesh/api/proto/shoal/v1/control.proto"),
    include_str!("../../../../mesh/api/proto/shoal/v1/dispatcher.proto"),
    include_str!("../../../../mesh/api/proto/shoal/v1/manager.proto"),
    include_str!("../../../../mesh/api/proto/shoal/v1/store.proto"),
];

/// `Service.Method` of all of them.
fn methods() -> Vec<String> {
    let mut found = Vec::new();
    for proto in PROTOS {
        let mut service = "";
        for line in proto.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("service ") {
                service = rest.trim_end_matches(['{', ' ']);
            } else if let Some(rest) = line.strip_prefix("rpc ") {
                let method = rest.split('(').next().unwrap();
                found.push(format!("{service}.{method}"));
            }
        }
    }
    found
}

/// Calls a method with an empty message. Whatever else is wrong with that: the caller is judged
/// first.
async fn call(channel: &Channel, method: &str) -> Result<(), tonic::Status> {
    let path = format!("/shoal.v1.{}", method.replace('.', "/")).parse().unwrap();
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    // One message each way looks alike for all kinds of calls.
    let codec = ProstCodec::<(), ()>::default();
    client.server_streaming(Request::new(()), path, codec).await.map(drop)
}

/// Which methods do not turn the caller away.
async fn open_to(channel: &Channel) -> BTreeSet<String> {
    let mut open = BTreeSet::new();
    for method in methods() {
        let refused = call(channel, &method).await.err();
        let code = refused.as_ref().map_or(Code::Ok, tonic::Status::code);
        assert_ne!(code, Code::Unimplemented, "{method} is not served");
        if !matches!(code, Code::Unauthenticated | Code::PermissionDenied) {
            open.insert(method);
        }
    }
    open
}

fn of(services: &[&str]) -> BTreeSet<String> {
    let is_of = |method: &String| services.iter().any(|service| method.starts_with(service));
    methods().into_iter().filter(is_of).collect()
}

async fn role(host: &Host, node: Node, role: NodeRole) {
    let spec = NodeSpec { role: role.into(), ..node.spec.unwrap() };
    let version = node.meta.unwrap().version;
    let request = UpdateNodeRequest { node_id: node.id, version, spec: Some(spec) };
    host.control().update_node(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_is_open_to_whom_it_should_be_and_to_nobody_else() {
    let cluster = Cluster::start(3).await;
    let leader = &cluster.hosts[cluster.leader().await];
    let follower = &cluster.hosts[cluster.follower().await];
    assert!(methods().len() > 25, "{:?}", methods());

    // Nobody's certificate.
    let token = JoinToken::parse(&leader.tokens().await.worker).unwrap();
    let dial = Dial::default();
    let stranger = connect_with_token(&leader.inner, &token, &dial).await.unwrap();
    assert_eq!(open_to(&stranger).await, of(&["Ca.Join"]));

    // A worker's. It must name itself where it opens a session.
    let worker = cluster.worker(8).await;
    let mut workers = of(&["Ca.", "Dispatcher."]);
    workers.remove("Dispatcher.Session");
    assert_eq!(open_to(&worker.channel(leader)).await, workers);
    workers.insert("Dispatcher.Session".into());
    let session = SessionRequest { node_id: worker.node_id.clone(), ..SessionRequest::default() };
    worker.dispatcher(leader).session(session).await.unwrap();

    // A manager's.
    let mut managers = of(&[""]);
    managers.remove("Dispatcher.Session");
    assert_eq!(open_to(&follower.member.channel(leader)).await, managers);

    // The same after the cluster has let them go, through a manager that must have heard of it.
    let refused = worker.control(leader).list_nodes(shoal_api::ListRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let gone = RemoveNodeRequest { node_id: worker.node_id.clone(), force: true };
    leader.control().remove_node(gone).await.unwrap();
    cluster.settled().await;
    for host in [leader, follower] {
        assert_eq!(open_to(&worker.channel(host)).await, of(&["Ca.Join"]));
        let refused = call(&worker.channel(host), "Ca.Renew").await.unwrap_err();
        let text = format!("node {} was removed from the swarm", worker.node_id);
        assert_eq!(refused.message(), text);
    }

    // One that keeps the certificate of its time as a manager has no more rights than a worker; in
    // Raft its id speaks for nobody.
    let node = leader.node(&follower.node_id).await.unwrap();
    role(leader, node, NodeRole::Worker).await;
    eventually("the node is a worker", || async {
        leader.node(&follower.node_id).await?.manager.is_none().then_some(())
    })
    .await;
    let mut left = of(&["Ca.", "Dispatcher.", "Raft.", "Leader.Announce"]);
    left.remove("Dispatcher.Session");
    assert_eq!(open_to(&follower.member.channel(leader)).await, left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_cluster_opens_nothing() {
    let cluster = Cluster::start(1).await;
    let (mut other, _listener) = Host::new(77, &Timings::default()).await;
    other.founding(NewCluster::default());
    let refused = call(&other.member.channel(&cluster.hosts[0]), "Ca.Join").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "the handshake fails: {refused}");
    assert!(shoal_transport::dial_error(&refused).is_some(), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_gets_no_certificate_of_another_node() {
    let cluster = Cluster::start(1).await;
    let host = &cluster.hosts[0];
    let token = host.tokens().await.worker;
    let thief = Member::new(5);
    let mut request = thief.request("127.0.0.1:1", &token);
    request.node_id = host.node_id.clone();
    let pinned = JoinToken::parse(&token).unwrap();
    let channel = connect_with_token(&host.inner, &pinned, &Dial::default()).await.unwrap();
    let mut ca = shoal_api::ca_client::CaClient::new(channel);
    let refused = ca.join(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    request.csr[40] ^= 1;
    let damaged = ca.join(request).await.unwrap_err();
    assert_eq!(damaged.code(), Code::InvalidArgument, "{damaged}");
    assert!(host.node(&thief.node_id).await.is_none(), "nothing is left of either");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_node_has_open_ends_at_once() {
    let cluster = Cluster::start(3).await;
    let leader = &cluster.hosts[cluster.leader().await];
    let worker = cluster.worker(8).await;
    let session = SessionRequest { node_id: worker.node_id.clone(), ..SessionRequest::default() };
    let mut session = worker.dispatcher(leader).session(session).await.unwrap().into_inner();
    let gone = RemoveNodeRequest { node_id: worker.node_id.clone(), force: true };
    leader.control().remove_node(gone).await.unwrap();
    let end = loop {
        match tokio::time::timeout(PATIENCE, session.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(reason) => break reason,
        }
    };
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");

    // A manager that is none any more sees no more events.
    let follower = &cluster.hosts[cluster.follower().await];
    let mut control = ControlClient::new(follower.member.channel(leader));
    let mut events = control.watch(WatchRequest::default()).await.unwrap().into_inner();
    let node = leader.node(&follower.node_id).await.unwrap();
    role(leader, node, NodeRole::Worker).await;
    let end = loop {
        match tokio::time::timeout(PATIENCE, events.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(reason) => break reason,
        }
    };
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
}

/// A vote for a member of that Raft id, by which it would lead if it were granted.
fn vote_for(raft_id: u64, to: &Host) -> RaftMessage {
    // Term and candidate, not committed; no log; in the name of the leader, which outdoes its lease.
    let request = (((1_000_u64, Some(raft_id)), false), None::<()>, true);
    RaftMessage {
        version: 1,
        payload: postcard::to_allocvec(&request).unwrap(),
        to: to.manager().raft_id(),
        cluster_id: to.manager().cluster_id().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_with_a_made_up_raft_id_is_not_heard_while_there_is_a_leader() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let forger = &cluster.hosts[cluster.follower().await];
    for (place, host) in cluster.hosts.iter().enumerate() {
        let channel = forger.member.channel(host);
        let mut raft = RaftClient::new(channel.clone());
        let refused = raft.vote(vote_for(99, host)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert_eq!(refused.message(), "manager 99 is not known in the swarm", "at {place}");
        // Neither may it fill the others' address books.
        let addr = "192.0.2.1:1".into();
        let from = ManagerAddress { raft_id: 99, addr, generation: 1, ..ManagerAddress::default() };
        let request = AnnounceRequest { from: Some(from) };
        let refused = LeaderClient::new(channel).announce(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    assert!(cluster.hosts[leader].manager().is_leader(), "it leads on");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_looks_again_at_whose_write_it_is() {
    let cluster = Cluster::start(3).await;
    let leader = &cluster.hosts[cluster.leader().await];
    let follower = &cluster.hosts[cluster.follower().await];
    let worker = cluster.worker(8).await;
    let forward = |node_id: &str, kind: write::Write| {
        let mut client = LeaderClient::new(follower.member.channel(leader));
        let caller = Caller { node_id: node_id.into(), role: NodeRole::Manager.into() };
        let write = Write { write: Some(kind) };
        async move {
            let request = ForwardRequest { caller: Some(caller), write: Some(write) };
            client.forward(request).await.map(drop).map_err(|status| status.code())
        }
    };
    let create = |name: &str| {
        let spec = Some(crate::harness::spec(name, 0));
        write::Write::CreateService(CreateServiceRequest { spec })
    };
    let renew = |of: &str| {
        let csr = csr::request(&Key::from_seed(&[3; 32]));
        write::Write::Renew(RenewWrite { node_id: of.into(), csr })
    };
    let denied = Err(Code::PermissionDenied);
    assert_eq!(forward(&worker.node_id, create("a")).await, denied, "a worker");
    assert_eq!(forward("nobody", create("b")).await, denied);
    assert_eq!(forward(&worker.node_id, renew(&leader.node_id)).await, denied, "another's");
    assert_eq!(forward(&worker.node_id, renew(&worker.node_id)).await, Ok(()));
    assert_eq!(forward(&follower.node_id, create("c")).await, Ok(()));
    assert_eq!(leader.services().await.unwrap(), ["c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demoted_manager_learns_nothing_from_one_that_has_not_heard_of_it() {
    let cluster = Cluster::start(4).await;
    let leader = cluster.leader().await;
    let (demoted, lagging) = (&cluster.hosts[(leader + 1) % 4], &cluster.hosts[(leader + 2) % 4]);
    let leader = &cluster.hosts[leader];
    lagging.wire.cut();
    let node = leader.node(&demoted.node_id).await.unwrap();
    role(leader, node, NodeRole::Worker).await;
    eventually("the node is a worker", || async {
        leader.node(&demoted.node_id).await?.manager.is_none().then_some(())
    })
    .await;
    let mut control = ControlClient::new(demoted.member.channel(lagging));
    let mut asking = std::pin::pin!(control.get_unlock_key(GetUnlockKeyRequest {}));
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut asking).await;
    assert!(waits.is_err(), "it waits for what it has not heard: {waits:?}");
    lagging.wire.heal();
    assert_eq!(asking.await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_ends_with_its_certificate() {
    let root = Root::found(&[9; 32], now());
    let (mut host, listener) = Host::new(1, &Timings::default()).await;
    let new = NewCluster { root: Some(root.signing_ca()), ..NewCluster::default() };
    let founding = host.founding(new);
    host.run(Manager::init(host.config(), founding), listener).await;
    let cluster = Cluster { hosts: vec![host] };
    let host = &cluster.hosts[0];
    let worker = cluster.worker(8).await;
    // As the cluster would issue it, for a few seconds.
    let identity = Identity { role: NodeRole::Worker, ..worker.credentials().identity() };
    let request = Csr::parse(&csr::request(&worker.key)).unwrap();
    let chain = root.issue(&request, &identity, now(), Duration::from_secs(3), [1; 16], "");
    let credentials = Credentials::new(&chain, &worker.key, &root.cert_pem()).unwrap();
    let dial = Dial::default();
    let channel = shoal_transport::connect(&credentials, &host.inner, &dial).await.unwrap();
    let open = call(&channel, "Dispatcher.Heartbeat").await.unwrap_err();
    assert_eq!(open.code(), Code::NotFound, "no session, yet it was heard: {open}");
    let refused = eventually("the certificate expires", || async {
        let refused = call(&channel, "Dispatcher.Heartbeat").await.unwrap_err();
        (refused.code() != Code::NotFound).then_some(refused)
    })
    .await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("has expired"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cannot_send_more_than_an_agent_ever_does() {
    let cluster = Cluster::start(1).await;
    let worker = cluster.worker(8).await;
    let dispatcher = worker.dispatcher(&cluster.hosts[0]);
    let report = |bytes: usize| {
        let updates = vec![TaskStatusUpdate { task_id: "t".repeat(bytes), status: None }];
        let request = UpdateTaskStatusRequest { session_id: "s".into(), updates };
        let mut dispatcher = dispatcher.clone();
        async move { dispatcher.update_task_status(request).await.unwrap_err().code() }
    };
    assert_eq!(report(3 << 20).await, Code::FailedPrecondition, "no such session, yet it was read");
    assert_eq!(report(5 << 20).await, Code::OutOfRange);
}
