//! Measures a cluster's writes and its backups; `cargo xtask bench raft` builds and runs it.
//!
//! Whole managers in one process: durable logs, mutual TLS on loopback, the leader's loop and all.
//! Each client asks the leader to create a service and then to remove it, one call after the other;
//! a call is answered when its batch is committed. Disks that are rate limited after a burst make a
//! pause between two runs necessary, else the limiter is measured (`--pause`).

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use shoal_api::control_client::ControlClient;
use shoal_api::{CreateServiceRequest, RemoveServiceRequest};
use shoal_identity::BackupKey;
use shoal_manager::backup::{self, NodeFiles};
use shoal_manager::{Manager, NewCluster, Timings};
use tonic::transport::Channel;

use harness::{Host, eventually, spec};

#[path = "../tests/cluster/harness.rs"]
#[allow(dead_code, reason = "shared with the tests of the cluster, which use the rest")]
mod harness;
#[path = "../tests/cluster/wire.rs"]
#[allow(dead_code, reason = "shared with the tests of the cluster, which use the rest")]
mod wire;

/// Connections that the clients share.
const CONNECTIONS: usize = 8;
/// Tasks of one service; a batch holds about a thousand.
const REPLICAS: u64 = 1_000;

struct Options {
    seconds: u64,
    pause: u64,
    tasks: u64,
}

#[tokio::main]
async fn main() {
    let mut options = Options { seconds: 3, pause: 5, tasks: 100_000 };
    let mut arguments = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        let value = value.parse().expect("a number");
        match name.as_str() {
            "--seconds" => options.seconds = value,
            "--pause" => options.pause = value,
            "--tasks" => options.tasks = value,
            other => panic!("no such option: {other}"),
        }
    }
    for managers in [1, 3] {
        let hosts = cluster(managers).await;
        for clients in [1, 64, 512] {
            tokio::time::sleep(Duration::from_secs(options.pause)).await;
            writes(&hosts, managers, clients, options.seconds).await;
        }
    }
    if options.tasks > 0 {
        tokio::time::sleep(Duration::from_secs(options.pause)).await;
        backups(options.tasks).await;
    }
}

/// Managers that reach each other without the tests' wires in between.
async fn cluster(size: usize) -> Vec<Host> {
    let timings = Timings::default();
    let (mut first, listener) = Host::new(1, &timings).await;
    first.addr = first.inner.clone();
    let founding = first.founding(NewCluster::default());
    first.run(Manager::init(first.config(), founding), listener).await;
    let mut hosts = vec![first];
    for number in 2..=size {
        let (mut host, listener) = Host::new(number, &timings).await;
        host.addr = host.inner.clone();
        let token = hosts[0].tokens().await.manager;
        let addr = host.addr.clone();
        let joined = host.member.join(&hosts[0], &addr, &token).await.unwrap();
        host.run(Manager::join(host.config(), joined.raft_id), listener).await;
        host.manager().joined(harness::PATIENCE).await.unwrap();
        hosts.push(host);
    }
    hosts
}

async fn writes(hosts: &[Host], managers: usize, clients: usize, seconds: u64) {
    let lead = || async { hosts.iter().find(|host| host.manager().is_leader()) };
    let leader = eventually("a manager leads", lead).await;
    let channels: Vec<Channel> = (0..CONNECTIONS).map(|_| leader.channel()).collect();
    let until = Instant::now() + Duration::from_secs(seconds);
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let control = ControlClient::new(channels[client % CONNECTIONS].clone());
            tokio::spawn(run(control, format!("c{client}"), until))
        })
        .collect();
    let (mut latencies, mut failed) = (Vec::new(), 0);
    for task in tasks {
        let (took, errors) = task.await.unwrap();
        latencies.extend(took);
        failed += errors;
    }
    let elapsed = started.elapsed().as_secs_f64();
    latencies.sort();
    let at = |percent: usize| {
        let place = latencies.len().saturating_sub(1) * percent / 100;
        latencies.get(place).map_or(0.0, |took| took.as_secs_f64() * 1_000.0)
    };
    let calls = u32::try_from(latencies.len()).unwrap();
    println!(
        "{{\"what\":\"writes\",\"managers\":{managers},\"clients\":{clients},\"per_second\":{:.0},\
         \"p50_ms\":{:.2},\"p99_ms\":{:.2},\"failed\":{failed}}}",
        f64::from(calls) / elapsed,
        at(50),
        at(99),
    );
}

/// One client: creates and removes until the time is over. Gives what each call took.
async fn run(
    mut control: ControlClient<Channel>,
    name: String,
    until: Instant,
) -> (Vec<Duration>, u64) {
    let (mut took, mut failed) = (Vec::new(), 0);
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let create = CreateServiceRequest { spec: Some(spec(&format!("{name}-{number}"), 0)) };
        let asked = Instant::now();
        let Ok(created) = control.create_service(create).await else {
            failed += 1;
            continue;
        };
        took.push(asked.elapsed());
        let service_id = created.into_inner().service.unwrap().id;
        let asked = Instant::now();
        match control.remove_service(RemoveServiceRequest { service_id }).await {
            Ok(_) => took.push(asked.elapsed()),
            Err(_) => failed += 1,
        }
    }
    (took, failed)
}

/// Backs a store with that many tasks up, and brings it back until it serves again.
async fn backups(tasks: u64) {
    let timings = Timings::default();
    let (mut host, listener) = Host::new(1, &timings).await;
    let new = NewCluster {
        address_pools: vec!["10.0.0.0/8".into()],
        subnet_size: 14,
        ..NewCluster::default()
    };
    let founding = host.founding(new);
    host.run(Manager::init(host.config(), founding), listener).await;
    for number in 0..tasks.div_ceil(REPLICAS) {
        let replicas = REPLICAS.min(tasks - number * REPLICAS);
        let spec = Some(spec(&format!("service{number}"), replicas));
        host.control().create_service(CreateServiceRequest { spec }).await.unwrap();
        // No more than one service's tasks at a time: what is measured comes later.
        let mut last = 0;
        eventually("its tasks are made", || {
            let now = host.manager().applied_index();
            let quiet = now == std::mem::replace(&mut last, now);
            async move { quiet.then_some(()) }
        })
        .await;
    }
    let wanted = usize::try_from(tasks).unwrap();
    eventually("all tasks are there", || async {
        let tasks = host.control().max_decoding_message_size(1 << 30);
        let mut tasks = tasks;
        let listed = tasks.list_tasks(shoal_api::ListRequest {}).await;
        (listed.ok()?.into_inner().tasks.len() >= wanted).then_some(())
    })
    .await;
    let key = BackupKey::from_bytes([1; 32]);
    let file: PathBuf = host.folder.path().join("backup");
    let started = Instant::now();
    let mut pieces =
        std::pin::pin!(host.manager().backup(key.clone(), NodeFiles::default()).await.unwrap());
    let mut out = tokio::fs::File::create(&file).await.unwrap();
    while let Some(piece) = pieces.try_next().await.unwrap() {
        tokio::io::AsyncWriteExt::write_all(&mut out, &piece).await.unwrap();
    }
    out.sync_all().await.unwrap();
    let backup_ms = started.elapsed().as_millis();
    host.stop().await;
    std::fs::remove_dir_all(host.state_dir()).unwrap();

    let started = Instant::now();
    let bytes = std::fs::metadata(&file).unwrap().len();
    let restored = backup::open(std::fs::File::open(&file).unwrap(), &key).unwrap();
    let vault = restored.write(&host.state_dir()).unwrap();
    let restore_ms = started.elapsed().as_millis();
    drop(restored);
    let config = host.config_with(vault);
    let listener = tokio::net::TcpListener::bind(&host.inner).await.unwrap();
    host.run(Manager::force_new_cluster(config, host.join_request()), listener).await;
    eventually("it serves again", || async { host.create("after").await.ok() }).await;
    let serving_ms = started.elapsed().as_millis();
    println!(
        "{{\"what\":\"backup\",\"tasks\":{tasks},\"bytes\":{bytes},\"backup_ms\":{backup_ms},\
         \"restore_ms\":{restore_ms},\"serving_ms\":{serving_ms}}}"
    );
}
