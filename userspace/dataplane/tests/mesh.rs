//! Hosts on one switch: real connections through the ingress node to the backend node and back.
//!
//! Node 1 and node 2 run a task each; the client stands outside. Every test ends with a look at
//! every stack: no checksum error anywhere.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::cluster::{
    CLIENT, Cluster, PATIENCE, StopOnDrop, ask, ask_udp, bulk, connect, counted, line, node,
};
use common::{needs_root, task};
use shoal_dataplane::{TcMode, XdpMode};

#[test]
fn every_node_answers_and_every_task_sees_the_client() {
    if !needs_root() {
        return;
    }
    for (xdp, tc) in [
        (XdpMode::Native, TcMode::Auto),
        (XdpMode::Auto, TcMode::Auto),
        (XdpMode::Native, TcMode::Clsact),
    ] {
        let mut cluster = Cluster::new(xdp, tc);
        for through in [1, 2] {
            cluster.both_answer(&cluster.client, CLIENT.into(), through);
            cluster.client.run(|| {
                (0..6).for_each(|_| bulk(node(through)));
                let wanted = ["task7", "task8"].map(|task| format!("{task} {CLIENT}"));
                // The longer one fills the link and does not fit a tunnel in one piece.
                for length in [1, 1472] {
                    let answers: BTreeSet<String> =
                        (0..40).map(|_| ask_udp(node(through), length)).collect();
                    assert_eq!(answers, BTreeSet::from(wanted.clone()));
                }
            });
        }
        for counters in cluster.kill() {
            let forwarder = if xdp == XdpMode::Native { "xdp_forwarded" } else { "tc_forwarded" };
            for reason in [forwarder, "mesh_delivered", "mesh_returned", "tc_delivered"] {
                assert!(counted(&counters, reason) > 0, "{reason} in {counters:?}");
            }
            let dropped: Vec<_> = counters
                .iter()
                .filter(|(name, _)| {
                    ["refused", "malformed", "spoofed", "no_flow", "stranger"]
                        .iter()
                        .any(|bad| name.ends_with(bad))
                })
                .collect();
            assert!(dropped.is_empty(), "{dropped:?}");
        }
        cluster.no_checksum_errors();
    }
}

#[test]
fn a_node_asks_another_node_for_a_task_of_its_own() {
    if !needs_root() {
        return;
    }
    let cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    cluster.both_answer(&cluster.hosts[0].ns, node(1).into(), 2);
    cluster.both_answer(&cluster.hosts[1].ns, node(2).into(), 1);
    cluster.no_checksum_errors();
}

#[test]
fn forwarding_goes_on_without_daemons_and_across_their_return() {
    if !needs_root() {
        return;
    }
    let mut cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    // From the client that asks on: it uses their ports for the other node, too.
    let mut held: Vec<TcpStream> = cluster.client.run(|| {
        (0..8)
            .map(|index| {
                let mut stream = connect(node(1 + index % 2)).unwrap();
                line(&mut stream).unwrap();
                stream
            })
            .collect()
    });
    let mut still_there = |when: &str| {
        for stream in &mut held {
            writeln!(stream, "{when}").unwrap();
            assert_eq!(line(stream).unwrap(), when);
        }
    };
    // New connections are made all the while.
    let stop = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let client = cluster.client.fd().try_clone_to_owned().unwrap();
        let asking = scope.spawn(|| {
            nix::sched::setns(client, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                for through in [1, 2] {
                    ask(node(through)).unwrap_or_else(|error| panic!("after {asked}: {error}"));
                    asked += 1;
                }
            }
            asked
        });
        // Also when a check below fails.
        let stopping = StopOnDrop(&stop);
        for _ in 0..3 {
            cluster.kill();
            still_there("killed");
            cluster.both_answer(&cluster.client, CLIENT.into(), 1);
            cluster.start(&[task(7, 1), task(8, 2)]);
            still_there("restarted");
            cluster.both_answer(&cluster.client, CLIENT.into(), 2);
        }
        drop(stopping);
        asking.join().unwrap()
    });
    println!("{asked} connections, none refused or late");
    cluster.no_checksum_errors();
}

#[test]
fn a_port_without_backends_is_refused_at_once() {
    if !needs_root() {
        return;
    }
    let mut cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    cluster.kill();
    cluster.start(&[]);
    cluster.client.run(|| {
        for through in [1, 2] {
            let begin = Instant::now();
            let error = ask(node(through)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            assert!(begin.elapsed() < PATIENCE / 2);
        }
    });
}

#[test]
fn a_task_that_left_the_ring_gets_no_new_connection() {
    if !needs_root() {
        return;
    }
    let mut cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    cluster.kill();
    cluster.start(&[task(8, 2)]);
    cluster.client.run(|| {
        for through in [1, 2] {
            for _ in 0..20 {
                assert_eq!(ask(node(through)).unwrap(), format!("task8 {CLIENT}"));
            }
        }
    });
}
