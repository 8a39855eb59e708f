//! Managers come, go and fail; what was acknowledged stays.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shoal_tests::cluster::Cluster;
use shoal_tests::lab::asker::Asker;
use shoal_tests::needs_root;

/// The nodes as `node ls` shows them through a host.
fn nodes(cluster: &Cluster, host: &str) -> Result<Vec<Value>> {
    cluster.lab.shoal_json(host, &["node", "ls", "--format", "json"])
}

/// The host that leads, as `host` sees it.
fn leader(cluster: &Cluster, host: &str) -> Result<String> {
    let nodes = nodes(cluster, host)?;
    let leader = nodes.iter().find(|node| node["ManagerStatus"] == "Leader");
    let leader = leader.with_context(|| format!("nobody leads: {nodes:?}"))?;
    Ok(leader["Hostname"].as_str().unwrap_or_default().to_owned())
}

fn services(cluster: &Cluster, host: &str) -> Result<BTreeSet<String>> {
    let listed = cluster.lab.shoal_json(host, &["service", "ls", "--format", "json"])?;
    let name = |service: &Value| service["Name"].as_str().unwrap_or_default().to_owned();
    Ok(listed.iter().map(name).collect())
}

/// A field of a node, by host name.
fn field(cluster: &Cluster, through: &str, host: &str, key: &str) -> Result<String> {
    let nodes = nodes(cluster, through)?;
    let node = nodes.iter().find(|node| node["Hostname"] == host);
    let node = node.with_context(|| format!("{host} is not listed: {nodes:?}"))?;
    Ok(node[key].as_str().unwrap_or_default().to_owned())
}

const EMPTY: [&str; 5] = ["--detach", "--replicas", "0", "rootfs:/", "/bin/true"];

fn create_empty(cluster: &Cluster, host: &str, name: &str) -> Result<String> {
    let create = ["service", "create", "--name", name];
    cluster.lab.shoal(host, &[create.as_slice(), &EMPTY].concat())
}

#[test]
fn five_managers_lose_two_and_write_on_lose_three_and_forward_on_and_come_back_by_force() {
    needs_root!();
    let cluster = Cluster::up("5", 5);
    let lab = &cluster.lab;
    cluster.create("web", 5, "8080:80", &[]);
    let mut acknowledged: BTreeSet<String> = BTreeSet::from(["web".to_owned()]);

    // Two of five, the leader among them.
    let first = cluster.must(leader(&cluster, "n1"));
    let hosts = lab.nodes();
    let mut others = hosts.iter().filter(|host| **host != first).cloned();
    let second = others.next().unwrap();
    let left: Vec<String> = others.collect();
    cluster.must(lab.kill(&second));
    let killed = Instant::now();
    cluster.must(lab.kill(&first));
    let written = cluster.wait("a write without two of five managers", 15, || {
        create_empty(&cluster, &left[0], "after-two")?;
        Ok(killed.elapsed())
    });
    println!("new leader and first write {written:?} after the leader's kill");
    acknowledged.insert("after-two".to_owned());
    // The demand is two seconds on a quiet machine; this bound only finds what is badly wrong.
    assert!(written < Duration::from_secs(6), "the first write took {written:?}");
    assert_eq!(cluster.must(services(&cluster, &left[1])), acknowledged);

    // A third: no quorum. Calls fail soon with the sentence, and packets flow.
    let asker = Asker::start(lab, &hosts, 8080, Duration::from_millis(50));
    cluster.must(lab.kill(&left[2]));
    for args in [&["node", "ls"][..], &["service", "scale", "after-two=1"]] {
        let begun = Instant::now();
        let output = cluster.must(lab.shoal_output(&left[0], args));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(
            text.contains("The swarm does not have a leader")
                || text.contains("too few managers may be online"),
            "{args:?}: {text}"
        );
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{args:?} took {took:?}");
    }
    let asks = cluster.must(asker.stop());
    let failed: Vec<_> = asks.iter().filter(|ask| ask.outcome.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), asks.len(), failed.first());
    assert!(asks.len() > 50, "only {} requests were made", asks.len());

    // By force from one of the two that are left. The other is a manager of the old cluster still,
    // so it goes first.
    let tasks: BTreeSet<String> = lab.tasks().into_iter().map(|task| task.id).collect();
    cluster.must(lab.kill(&left[1]));
    cluster.must(lab.shoal(&left[0], &["init", "--force-new-cluster"]));
    cluster.wait("the recovered manager to answer", 20, || {
        let now = services(&cluster, &left[0])?;
        ensure!(now == acknowledged, "{now:?}");
        Ok(())
    });
    cluster.must(create_empty(&cluster, &left[0], "after-force"));
    acknowledged.insert("after-force".to_owned());

    // The others come back as workers, with their tasks.
    for host in hosts.iter().filter(|host| **host != left[0]) {
        cluster.must(lab.start(host));
    }
    cluster.wait("all hosts to be ready, one of them a manager", 60, || {
        let nodes = nodes(&cluster, &left[0])?;
        let ready = nodes.iter().filter(|node| node["Status"] == "Ready").count();
        let managers = nodes.iter().filter(|node| node["ManagerStatus"] != "").count();
        ensure!((ready, managers) == (5, 1), "{ready} ready, {managers} managers: {nodes:?}");
        Ok(())
    });
    let still: BTreeSet<String> = lab.tasks().into_iter().map(|task| task.id).collect();
    assert_eq!(still.len(), 5, "{still:?}");
    println!(
        "{} of {} tasks are those from before",
        tasks.intersection(&still).count(),
        tasks.len()
    );
    for host in &hosts {
        cluster.wait("every host to answer", 20, || {
            let answers = cluster.ask(host, 8080, 20);
            let failed = answers.iter().filter(|answer| answer.is_err()).count();
            ensure!(failed == 0, "{failed} of 20 requests through {host} fail");
            Ok(())
        });
    }
    // And managers again.
    for host in hosts.iter().filter(|host| **host != left[0]).take(2) {
        cluster.must(lab.shoal(&left[0], &["node", "promote", host]));
    }
    cluster.wait("three managers", 60, || {
        let nodes = nodes(&cluster, &left[0])?;
        let status = |node: &&Value| {
            ["Leader", "Reachable"].contains(&node["ManagerStatus"].as_str().unwrap_or(""))
        };
        let managers = nodes.iter().filter(status).count();
        ensure!(managers == 3, "{managers} managers: {nodes:?}");
        Ok(())
    });
    assert_eq!(cluster.must(services(&cluster, &left[0])), acknowledged);
}

#[test]
fn a_node_is_promoted_and_demoted_and_its_tasks_do_not_notice() {
    needs_root!();
    let cluster = Cluster::up_with("d", 1, 2);
    let lab = &cluster.lab;
    cluster.create("web", 3, "8080:80", &[]);
    let tasks = lab.tasks();
    let asker = Asker::start(lab, &lab.nodes(), 8080, Duration::from_millis(50));
    let said = cluster.shoal(&["node", "promote", "n2", "n3"]);
    assert!(said.contains("Node n2 promoted to a manager in the swarm."), "{said}");
    for host in ["n2", "n3"] {
        cluster.wait("it to be a manager that answers", 40, || {
            let status = field(&cluster, host, host, "ManagerStatus")?;
            ensure!(status == "Reachable", "{host} is {status:?}");
            Ok(())
        });
    }
    // The leader itself, through another manager.
    let said = cluster.must(lab.shoal("n2", &["node", "demote", "n1"]));
    assert!(said.contains("Manager n1 demoted in the swarm."), "{said}");
    cluster.wait("n1 to be a worker", 40, || {
        let status = field(&cluster, "n2", "n1", "ManagerStatus")?;
        ensure!(status.is_empty(), "n1 is {status:?}");
        let output = lab.shoal_output("n1", &["node", "ls"])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(text.contains("Worker nodes can't be used to view or modify"), "{text}");
        Ok(())
    });
    assert!(!lab.host_dir("n1").join("state/raft").exists(), "a worker keeps no Raft state");
    cluster.wait("n1 to be ready", 20, || {
        let status = field(&cluster, "n2", "n1", "Status")?;
        ensure!(status == "Ready", "n1 is {status:?}");
        Ok(())
    });
    let asks = cluster.must(asker.stop());
    let failed: Vec<_> = asks.iter().filter(|ask| ask.outcome.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), asks.len(), failed.first());
    assert_eq!(lab.tasks(), tasks, "the same tasks in the same processes");
    // Down to one: the last manager stays one.
    cluster.must(lab.shoal("n2", &["node", "demote", "n3"]));
    cluster.wait("n3 to be a worker", 40, || {
        let status = field(&cluster, "n2", "n3", "ManagerStatus")?;
        ensure!(status.is_empty(), "n3 is {status:?}");
        Ok(())
    });
    let refused = cluster.must(lab.shoal_output("n2", &["node", "demote", "n2"]));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("attempting to demote the last manager of the swarm"), "{text}");
}

#[test]
fn nodes_leave_and_are_removed_and_a_removed_one_is_refused_at_once() {
    needs_root!();
    let cluster = Cluster::up_with("v", 1, 2);
    let lab = &cluster.lab;
    cluster.create("web", 3, "8080:80", &[]);
    let refused = |host: &str, args: &[&str]| {
        let output = cluster.must(lab.shoal_output(host, args));
        assert_eq!(output.status.code(), Some(1), "{args:?} did not fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = refused("n1", &["leave"]);
    assert!(text.contains("Removing the last manager erases all current state"), "{text}");
    let text = refused("n1", &["node", "rm", "n3"]);
    assert!(text.contains("is not down and can't be removed"), "{text}");
    // A worker leaves: its tasks end there and run elsewhere.
    let said = cluster.must(lab.shoal("n3", &["leave"]));
    assert!(said.contains("Node left the swarm."), "{said}");
    assert!(lab.tasks().iter().all(|task| task.host != "n3"), "{:?}", lab.tasks());
    cluster.wait("n3 to be down and its tasks replaced", 30, || {
        let status = field(&cluster, "n1", "n3", "Status")?;
        ensure!(status == "Down", "n3 is {status}");
        ensure!(lab.tasks().len() == 3, "{:?}", lab.tasks());
        Ok(())
    });
    cluster.shoal(&["node", "rm", "n3"]);
    assert!(field(&cluster, "n1", "n3", "Status").is_err(), "n3 is gone");
    // A node that is removed while it lives is refused, and knows it.
    cluster.shoal(&["node", "rm", "--force", "n2"]);
    cluster.wait("n2 to say that it was removed", 30, || {
        let info = lab.shoal_json("n2", &["info", "--format", "json"])?;
        let state = info[0]["Swarm"]["LocalNodeState"].as_str().unwrap_or("").to_owned();
        let error = info[0]["Swarm"]["Error"].as_str().unwrap_or("").to_owned();
        ensure!(state == "error" && error.contains("removed"), "{state}: {error}");
        Ok(())
    });
    // Both start anew.
    cluster.must(lab.shoal("n2", &["leave", "--force"]));
    for host in ["n2", "n3"] {
        cluster.must(lab.join(host, "worker"));
    }
    cluster.wait("all to be ready again", 30, || {
        let nodes = nodes(&cluster, "n1")?;
        let ready = nodes.iter().filter(|node| node["Status"] == "Ready").count();
        ensure!(ready == 3, "{nodes:?}");
        Ok(())
    });
}

#[test]
fn a_backup_of_a_running_manager_brings_the_cluster_back() {
    needs_root!();
    let cluster = Cluster::up_with("z", 1, 1);
    let lab = &cluster.lab;
    cluster.create("web", 2, "8080:80", &[]);
    let file = lab.dir().join("cluster.backup");
    let key = lab.dir().join("backup.key");
    let (file, key) = (file.to_str().unwrap(), key.to_str().unwrap());
    cluster.shoal(&["backup", "--key-file", key, file]);
    let backup = std::fs::read(file).unwrap();
    let info = cluster.must(lab.shoal_json("n1", &["info", "--format", "json"]));
    let cluster_id = info[0]["Swarm"]["Cluster"]["ID"].clone();
    for secret in ["web", "rootfs", "BEGIN", "SWMTKN", cluster_id.as_str().unwrap()] {
        let found = backup.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret:?} can be read in the backup");
    }
    // Written after the backup: it is not in it.
    cluster.must(create_empty(&cluster, "n1", "later"));
    let tasks: BTreeSet<String> = lab.tasks().into_iter().map(|task| task.id).collect();

    // The manager's disk is lost.
    cluster.must(lab.kill("n1"));
    std::fs::rename(lab.host_dir("n1").join("state"), lab.host_dir("n1").join("lost")).unwrap();
    cluster.must(lab.start("n1"));
    let restore = |file: &str, key: &str| lab.shoal("n1", &["restore", "--key-file", key, file]);
    let mut damaged = backup.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let bad = lab.dir().join("damaged.backup");
    std::fs::write(&bad, damaged).unwrap();
    let refused = restore(bad.to_str().unwrap(), key).unwrap_err();
    let state = lab.host_dir("n1").join("state");
    assert!(!state.join("node.json").exists(), "nothing was touched: {refused:#}");
    cluster.must(restore(file, key));
    cluster.shoal(&["init", "--force-new-cluster"]);
    cluster.wait("the services to be back", 20, || {
        let now = services(&cluster, "n1")?;
        ensure!(now == BTreeSet::from(["web".to_owned()]), "{now:?}");
        Ok(())
    });
    let info = cluster.must(lab.shoal_json("n1", &["info", "--format", "json"]));
    assert_eq!(info[0]["Swarm"]["Cluster"]["ID"], cluster_id, "the same cluster");
    cluster.wait("the worker to be ready in it", 30, || {
        let status = field(&cluster, "n1", "n2", "Status")?;
        ensure!(status == "Ready", "n2 is {status}");
        let names: BTreeSet<String> = lab.tasks().into_iter().map(|task| task.name).collect();
        ensure!(names.len() == 2, "{names:?}");
        Ok(())
    });
    let still: BTreeSet<String> = lab.tasks().into_iter().map(|task| task.id).collect();
    println!(
        "{} of {} tasks are those from before",
        tasks.intersection(&still).count(),
        tasks.len()
    );
    for host in ["n1", "n2"] {
        cluster.wait("every host to answer", 20, || {
            let failed = cluster.ask(host, 8080, 20).iter().filter(|a| a.is_err()).count();
            ensure!(failed == 0, "{failed} of 20 requests through {host} fail");
            Ok(())
        });
    }
}
