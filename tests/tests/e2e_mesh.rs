//! A published port on real hosts: every host answers, and kills of daemons change nothing.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use shoal_tests::cluster::Cluster;
use shoal_tests::lab::asker::{Asker, TIMEOUT};
use shoal_tests::lab::{CLIENT, CLIENT_ADDR, http};
use shoal_tests::needs_root;

fn names(name: &str, count: usize) -> BTreeSet<String> {
    (1..=count).map(|slot| format!("{name}.{slot}")).collect()
}

#[test]
fn every_host_answers_for_every_task_and_scaling_is_followed() {
    needs_root!();
    let cluster = Cluster::up("m", 3);
    cluster.create("web", 3, "8080:80", &[]);
    for host in cluster.lab.nodes() {
        assert_eq!(cluster.answering(&host, 8080, 40), names("web", 3), "through {host}");
    }
    cluster.shoal(&["service", "scale", "web=5"]);
    for host in cluster.lab.nodes() {
        assert_eq!(cluster.answering(&host, 8080, 80), names("web", 5), "through {host}");
    }
    cluster.shoal(&["service", "scale", "web=1"]);
    for host in cluster.lab.nodes() {
        assert_eq!(cluster.answering(&host, 8080, 20).len(), 1, "through {host}");
    }
    cluster.shoal(&["service", "rm", "web"]);
    for host in cluster.lab.nodes() {
        cluster.wait("the port to close", 10, || {
            ensure!(cluster.ask(&host, 8080, 1)[0].is_err(), "{host} still answers");
            Ok(())
        });
    }
    cluster.wait("the tasks to end", 20, || {
        let left = cluster.lab.tasks();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

#[test]
fn much_data_crosses_unchanged_in_size() {
    needs_root!();
    let cluster = Cluster::up("b", 2);
    cluster.create("web", 2, "8080:80", &[]);
    let bytes = 20_000_000;
    for host in cluster.lab.nodes() {
        let addr = SocketAddr::new(cluster.lab.addr(&host).into(), 8080);
        // Enough connections that both the near and the far task are asked.
        for _ in 0..4 {
            let body = cluster.lab.inside(CLIENT, || {
                http::get(addr, &format!("/bytes/{bytes}"), Duration::from_secs(20))
            });
            let body = cluster.must(body.and_then(|body| body));
            assert_eq!(body.len(), bytes, "through {host}");
        }
    }
}

#[test]
fn datagrams_find_a_task_and_their_answers_the_way_back() {
    needs_root!();
    let cluster = Cluster::up("u", 3);
    cluster.create("dns", 2, "5353:80/udp", &["--udp"]);
    for host in cluster.lab.nodes() {
        let addr = SocketAddr::new(cluster.lab.addr(&host).into(), 5353);
        let answers = cluster.lab.inside(CLIENT, || -> Result<BTreeSet<String>> {
            let mut tasks = BTreeSet::new();
            for _ in 0..30 {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(TIMEOUT))?;
                socket.connect(addr)?;
                socket.send(b"who?")?;
                let mut buffer = [0; 1500];
                let length = socket.recv(&mut buffer).context("no answer")?;
                let answer = http::parse_answer(&String::from_utf8_lossy(&buffer[..length]))?;
                ensure!(answer.client.ip() == CLIENT_ADDR, "seen as {}", answer.client);
                ensure!(answer.client.port() == socket.local_addr()?.port(), "another port");
                tasks.insert(answer.task);
            }
            Ok(tasks)
        });
        let tasks = cluster.must(answers.and_then(|answers| answers));
        assert_eq!(tasks, names("dns", 2), "through {host}");
    }
}

#[test]
fn forwarding_outlives_all_daemons_and_their_return_changes_nothing() {
    needs_root!();
    let cluster = Cluster::up("k", 3);
    cluster.create("web", 3, "8080:80", &[]);
    let hosts = cluster.lab.nodes();
    let tasks = cluster.lab.tasks();
    assert_eq!(tasks.len(), 3);

    // Established connections, several per host so that they end at near and far tasks.
    let connect = |host: &String| {
        let addr = SocketAddr::new(cluster.lab.addr(host).into(), 8080);
        cluster.must(cluster.lab.inside(CLIENT, || -> Result<TcpStream> {
            Ok(TcpStream::connect_timeout(&addr, TIMEOUT)?)
        }))
    };
    let mut established: Vec<TcpStream> = hosts
        .iter()
        .flat_map(|host| [host, host, host])
        .map(|host| connect(host).unwrap())
        .collect();
    let mut all_answer = |when: &str| {
        for stream in &mut established {
            let answer = http::get_on(stream, "/", TIMEOUT, true);
            cluster.must(answer.with_context(|| format!("an established connection, {when}")));
        }
    };
    all_answer("before the kill");

    let asker = Asker::start(&cluster.lab, &hosts, 8080, Duration::from_millis(50));
    for host in &hosts {
        cluster.must(cluster.lab.kill(host));
    }
    all_answer("with all daemons dead");
    for host in &hosts {
        assert_eq!(cluster.answering(host, 8080, 40), names("web", 3), "daemons dead, {host}");
    }
    for host in &hosts {
        cluster.must(cluster.lab.start(host));
    }
    cluster.wait("the cluster to be whole again", 30, || {
        let nodes = cluster.lab.shoal_json("n1", &["node", "ls", "--format", "json"])?;
        let ready = nodes.iter().filter(|node| node["Status"] == "Ready").count();
        let leader = nodes.iter().any(|node| node["ManagerStatus"] == "Leader");
        ensure!(ready == 3 && leader, "{ready} nodes are ready");
        Ok(())
    });
    all_answer("after the daemons' return");
    let asks = cluster.must(asker.stop());
    let failed: Vec<_> = asks.iter().filter(|ask| ask.outcome.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), asks.len(), failed.first());
    assert!(asks.len() > 50, "only {} requests were made", asks.len());
    assert_eq!(cluster.lab.tasks(), tasks, "the same tasks run, in the same processes");
}

#[test]
fn a_cut_host_is_replaced_and_welcome_again() {
    needs_root!();
    let cluster = Cluster::up("c", 3);
    cluster.create("web", 3, "8080:80", &[]);
    cluster.must(cluster.lab.cut("n3"));
    cluster.wait("the tasks of n3 to be replaced", 30, || {
        for host in ["n1", "n2"] {
            let answers: Result<Vec<_>> = cluster.ask(host, 8080, 30).into_iter().collect();
            let tasks: BTreeSet<String> = answers?.into_iter().map(|answer| answer.task).collect();
            ensure!(tasks == names("web", 3), "{tasks:?} answer through {host}");
        }
        Ok(())
    });
    cluster.must(cluster.lab.heal("n3"));
    cluster.wait("n3 to be ready and serve again", 30, || {
        let nodes = cluster.lab.shoal_json("n1", &["node", "ls", "--format", "json"])?;
        let n3 = nodes.iter().find(|node| node["Hostname"] == "n3").context("n3 is not listed")?;
        ensure!(n3["Status"] == "Ready", "n3 is {}", n3["Status"]);
        let answers: Result<Vec<_>> = cluster.ask("n3", 8080, 30).into_iter().collect();
        let tasks: BTreeSet<String> = answers?.into_iter().map(|answer| answer.task).collect();
        ensure!(tasks == names("web", 3), "{tasks:?} answer through n3");
        // The orphans that n3 ran while it was cut off are stopped.
        let running = cluster.lab.tasks();
        ensure!(running.len() == 3, "{running:?}");
        Ok(())
    });
}

#[test]
fn a_port_in_use_is_refused_by_the_name_of_its_owner() {
    needs_root!();
    let cluster = Cluster::up("p", 1);
    cluster.create("web", 1, "8080:80", &[]);
    let second = ["service", "create", "--name", "more", "-p", "8080:80", "rootfs:/", "/bin/true"];
    let output = cluster.must(cluster.lab.shoal_output("n1", &second));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("8080") && text.contains("web"), "{text}");
    assert!(text.trim().lines().count() == 1, "one sentence, not {text}");
    let services =
        cluster.must(cluster.lab.shoal_json("n1", &["service", "ls", "--format", "json"]));
    assert_eq!(services.len(), 1, "nothing was half created: {services:?}");
}

#[test]
fn a_missing_image_is_said_and_retried_at_the_pace_of_the_restart_delay() {
    needs_root!();
    let cluster = Cluster::up("i", 1);
    let begun = Instant::now();
    cluster.shoal(&["service", "create", "--detach", "--name", "web", "rootfs:/none", "/bin/true"]);
    let rejected = |count: usize| {
        cluster.wait("tasks to be rejected", 20, || {
            let tasks = ["service", "ps", "web", "--format", "json"];
            let tasks = cluster.lab.shoal_json("n1", &tasks)?;
            let with_reason = tasks
                .iter()
                .filter(|task| task["Error"].to_string().contains("No such image: rootfs:/none"));
            let found = with_reason.count();
            ensure!(found >= count, "{found} of {count}: {tasks:?}");
            Ok(())
        });
    };
    rejected(1);
    rejected(3);
    // The second attempt is prepared while it waits for the restart delay of five seconds, and
    // fails at that; the third one has to wait for the end of that delay.
    assert!(begun.elapsed() > Duration::from_secs(4), "three attempts in {:?}", begun.elapsed());
}
