//! What a stranger sees and gets, and rotations of everything secret while the cluster works.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use shoal_tests::cluster::Cluster;
use shoal_tests::lab::CLIENT;
use shoal_tests::lab::asker::Asker;
use shoal_tests::lab::daemon::MANAGER_PORT;
use shoal_tests::needs_root;

/// gRPC's `UNAUTHENTICATED`.
const UNAUTHENTICATED: &str = "16";

#[test]
fn nothing_on_the_wire_is_readable_from_the_first_join_on() {
    needs_root!();
    let cluster = Cluster::hosts("w", 3);
    let filter = format!("tcp port {MANAGER_PORT}");
    let capture = cluster.must(cluster.lab.capture(&filter));
    cluster.must(cluster.lab.form_with(2, 1));
    let token = cluster.must(cluster.lab.token("worker"));
    cluster.create("plainmarker", 3, "8080:80", &[]);
    cluster.shoal(&["service", "scale", "plainmarker=1"]);
    let bytes = cluster.must(capture.finish());
    let records = bytes.windows(3).filter(|window| window == b"\x17\x03\x03").count();
    assert!(records > 50, "only {records} TLS records in {} bytes", bytes.len());
    let secret = token.rsplit('-').next().unwrap().to_owned();
    let id = cluster.must(cluster.lab.shoal_json("n1", &["info", "--format", "json"]))[0]["Swarm"]
        ["NodeID"]
        .as_str()
        .unwrap()
        .to_owned();
    // What would be there without TLS: HTTP/2's preface, gRPC's paths, names, ids, secrets.
    for readable in ["PRI * HTTP/2.0", "shoal.v1", "plainmarker", "rootfs:", "SWMTKN", &secret, &id]
    {
        let found = bytes.windows(readable.len()).any(|window| window == readable.as_bytes());
        assert!(!found, "{readable:?} can be read on the wire");
    }
}

#[test]
fn a_client_without_a_certificate_gets_nothing_but_the_bootstrap_call() {
    needs_root!();
    let cluster = Cluster::up("o", 1);
    let addr = format!("{}:{MANAGER_PORT}", cluster.lab.addr("n1"));
    let call = |method: &str| -> Result<String> {
        // An empty message in gRPC's frame; curl is a client that knows nothing of us.
        let frame = cluster.lab.dir().join("frame");
        std::fs::write(&frame, [0; 5])?;
        let mut curl = Command::new("curl");
        curl.args(["-sk", "--http2", "-m", "5", "-D", "-", "-o", "/dev/null"]);
        curl.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        curl.arg("--data-binary").arg(format!("@{}", frame.display()));
        curl.arg(format!("https://{addr}/shoal.v1.{method}"));
        let output = cluster.lab.output(CLIENT, &mut curl)?;
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        let status = text.lines().find_map(|line| line.strip_prefix("grpc-status:"));
        status.map(|status| status.trim().to_owned()).with_context(|| {
            format!("curl: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr))
        })
    };
    for method in [
        "Control/ListNodes",
        "Control/GetCluster",
        "Control/GetUnlockKey",
        "Control/CreateService",
        "Dispatcher/Session",
        "Dispatcher/Heartbeat",
        "Raft/Vote",
        "Raft/AppendEntries",
        "Leader/Forward",
        "Leader/Announce",
        "Ca/Renew",
    ] {
        assert_eq!(cluster.must(call(method)), UNAUTHENTICATED, "{method}");
    }
    let joined = cluster.must(call("Ca/Join"));
    assert_ne!(joined, UNAUTHENTICATED, "the bootstrap call answers a stranger");
    assert_ne!(joined, "0", "but lets nobody in without a token");
    // Nothing older than TLS 1.3, and no plain text.
    let handshake = |version: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", version, "-brief", "-connect", &addr]);
        cluster.must(cluster.lab.output(CLIENT, openssl.stdin(std::process::Stdio::null())))
    };
    assert!(!handshake("-tls1_2").status.success());
    let modern = handshake("-tls1_3");
    let text = String::from_utf8_lossy(&modern.stderr);
    assert!(text.contains("TLSv1.3"), "{text}");
}

/// Each secret is rotated so many times: one round takes a few seconds, too few for many calls.
const ROUNDS: usize = 4;

/// Calls that go on in the background; each failure is kept.
struct Calls<'a> {
    stop: &'a AtomicBool,
}

impl Calls<'_> {
    /// Reads through one host and writes through another until told to stop.
    fn run(&self, cluster: &Cluster, number: usize) -> (usize, Vec<String>) {
        // The last host is a worker, which says that it cannot.
        let hosts = &cluster.lab.nodes()[..3];
        let (mut made, mut failed) = (0, Vec::new());
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let host = &hosts[(round + number) % hosts.len()];
            let name = format!("load-{number}-{round}");
            let create = [
                "service",
                "create",
                "--detach",
                "--replicas",
                "0",
                "--name",
                &name,
                "rootfs:/",
                "/bin/true",
            ];
            for args in [&create[..], &["service", "ls"], &["service", "rm", &name]] {
                made += 1;
                if let Err(error) = cluster.lab.shoal(host, args) {
                    failed.push(format!("{error:#}"));
                }
            }
        }
        (made, failed)
    }
}

#[test]
fn every_secret_is_rotated_under_load_without_a_failed_call() {
    needs_root!();
    let cluster = Cluster::up_with("r", 3, 1);
    cluster.create("web", 4, "8080:80", &[]);
    let lab = &cluster.lab;
    let stop = AtomicBool::new(false);
    let asker = Asker::start(lab, &lab.nodes(), 8080, Duration::from_millis(100));
    let calls = Calls { stop: &stop };
    let outcomes = std::thread::scope(|scope| {
        let (cluster, calls) = (&cluster, &calls);
        let load: Vec<_> = (0..2).map(|n| scope.spawn(move || calls.run(cluster, n))).collect();
        let rotated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..ROUNDS).for_each(|_| rotate(cluster));
        }));
        stop.store(true, Ordering::Relaxed);
        let outcomes: Vec<_> = load.into_iter().map(|thread| thread.join().unwrap()).collect();
        rotated.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcomes
    });
    for (made, failed) in outcomes {
        assert!(failed.is_empty(), "{} of {made} calls failed: {:?}", failed.len(), failed.first());
        assert!(made > 20, "only {made} calls were made");
    }
    let asks = cluster.must(asker.stop());
    let failed: Vec<_> = asks.iter().filter(|ask| ask.outcome.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), asks.len(), failed.first());
}

fn rotate(cluster: &Cluster) {
    let lab = &cluster.lab;
    // Tokens: the old one is refused from then on, the new one lets in.
    for role in ["worker", "manager"] {
        let old = cluster.must(lab.token(role));
        let said = cluster.shoal(&["join-token", "--rotate", role]);
        assert!(said.contains(&format!("Successfully rotated {role} join token.")), "{said}");
        let new = cluster.must(lab.token(role));
        assert_ne!(old, new);
    }
    // The root: every certificate is issued anew, and the tokens pin the new root.
    let root = cluster.shoal(&["ca"]);
    let token = cluster.must(lab.token("worker"));
    cluster.shoal(&["ca", "--rotate", "--quiet"]);
    let new_root = cluster.shoal(&["ca"]);
    assert_ne!(root, new_root);
    let new_token = cluster.must(lab.token("worker"));
    let part = |token: &str, at: usize| token.split('-').nth(at).unwrap_or_default().to_owned();
    assert_ne!(part(&token, 2), part(&new_token, 2), "the digest of the new root");
    assert_eq!(part(&token, 3), part(&new_token, 3), "the same secret");
    // The unlock key.
    cluster.shoal(&["update", "--autolock=true"]);
    let key = cluster.shoal(&["unlock-key", "-q"]);
    let said = cluster.shoal(&["unlock-key", "--rotate"]);
    assert!(said.contains("Successfully rotated manager unlock key."), "{said}");
    let new_key = cluster.shoal(&["unlock-key", "-q"]);
    assert!(new_key.starts_with("SWMKEY-1-"), "{new_key}");
    assert_ne!(key, new_key);
}

#[test]
fn a_locked_manager_waits_for_its_key_while_tasks_and_packets_go_on() {
    needs_root!();
    let cluster = Cluster::up("l", 3);
    let lab = &cluster.lab;
    cluster.create("web", 3, "8080:80", &[]);
    cluster.shoal(&["update", "--autolock=true"]);
    let key = cluster.shoal(&["unlock-key", "-q"]).trim().to_owned();
    let sealed = |host: &str| {
        lab.shoal_json(host, &["info", "--format", "json"])
            .map(|info| info[0]["Swarm"]["LocalNodeState"].as_str().unwrap_or("").to_owned())
    };
    // Each manager seals its keys when it hears of it.
    let tasks = lab.tasks();
    cluster.must(lab.kill("n3"));
    cluster.wait("n3 to come back locked", 30, || {
        if lab.daemon_pid("n3").is_none() {
            lab.start("n3")?;
        }
        let state = sealed("n3")?;
        if state == "active" {
            lab.kill("n3")?;
        }
        ensure!(state == "locked", "n3 is {state}");
        Ok(())
    });
    let refused = cluster.must(lab.shoal_output("n3", &["node", "ls"]));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("Swarm is encrypted and needs to be unlocked"), "{text}");
    assert_eq!(lab.tasks(), tasks, "the tasks of a locked manager run on");
    let names: BTreeSet<String> = (1..=3).map(|slot| format!("web.{slot}")).collect();
    let through_n3 = cluster.answering("n3", 8080, 40);
    assert!(!through_n3.is_empty() && through_n3.is_subset(&names), "{through_n3:?}");
    let unlock = |key: &str| lab.shoal_with_input("n3", &["unlock"], key);
    let wrong = unlock("SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap_err();
    let wrong = format!("{wrong:#}");
    assert!(wrong.contains("swarm could not be unlocked: invalid key provided"), "{wrong}");
    cluster.must(unlock(&key));
    cluster.wait("n3 to be a manager again", 30, || {
        lab.shoal("n3", &["node", "ls"])?;
        Ok(())
    });
    let again = unlock(&key).unwrap_err();
    assert!(format!("{again:#}").contains("swarm is not locked"), "{again:#}");
}

#[test]
fn half_open_connections_and_garbage_cost_nothing_lasting() {
    needs_root!();
    let cluster = Cluster::up("g", 1);
    let addr = std::net::SocketAddr::new(cluster.lab.addr("n1").into(), MANAGER_PORT);
    let pid = cluster.lab.daemon_pid("n1").unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count);
    let before = descriptors().unwrap();
    let open = cluster.lab.inside(CLIENT, || -> Result<Vec<std::net::TcpStream>> {
        let mut streams = Vec::new();
        for number in 0..400_u32 {
            let mut stream = std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(2))?;
            if number % 2 == 0 {
                let garbage: Vec<u8> = (0..200)
                    .map(|at| u8::try_from((number * 31 + at) % 256).unwrap_or(0))
                    .collect();
                // The other side may have hung up already.
                let _ = std::io::Write::write_all(&mut stream, &garbage);
            }
            streams.push(stream);
        }
        Ok(streams)
    });
    let streams = cluster.must(open.and_then(|open| open));
    let begun = Instant::now();
    cluster.shoal(&["node", "ls"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "a call took {:?}", begun.elapsed());
    cluster.wait("the daemon to let go of them", 40, || {
        let now = descriptors()?;
        ensure!(now <= before + 10, "{now} descriptors, {before} before");
        Ok(())
    });
    drop(streams);
}
