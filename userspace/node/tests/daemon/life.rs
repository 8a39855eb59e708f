//! A node's life as a member: promoted, demoted, its root changed, locked and unlocked, gone.

use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::hosts::{Hosts, can_run, until};

/// Process ids of the tasks, by the node they run on.
fn pids(hosts: &Hosts) -> Vec<(Value, Value)> {
    let mut pids: Vec<_> =
        hosts.tasks('a').iter().map(|task| (task["Node"].clone(), task["PID"].clone())).collect();
    pids.sort_by_key(|(node, _)| node.to_string());
    pids
}

fn key(hosts: &Hosts, host: char) -> Vec<u8> {
    let path = hosts.state(host).join("certificates/node.key");
    std::fs::read(path).expect("a member has a key")
}

#[test]
fn a_node_is_promoted_demoted_and_leaves_while_its_tasks_run_on() {
    if !can_run() {
        return;
    }
    let hosts = Hosts::pair("worker");
    hosts.serve_web("2");
    let before = until("two tasks run", || Some(pids(&hosts)).filter(|pids| pids.len() == 2));
    assert!(key(&hosts, 'b').starts_with(b"-----BEGIN"), "a worker has no vault");

    let said = hosts.ok('a', &["node", "promote", "b"]);
    assert!(said.contains("promoted to a manager in the swarm."), "{said}");
    until("b is a manager", || {
        let nodes = hosts.shoal('b', &["node", "ls"]);
        (nodes.status.success() && hosts.swarm('b')["ControlAvailable"] == true).then_some(())
    });
    assert!(!key(&hosts, 'b').starts_with(b"-----BEGIN"), "a manager's key is sealed");
    assert!(hosts.state('b').join("raft").exists());
    until("the leader reaches it", || {
        let nodes = hosts.nodes('a');
        let b = nodes.iter().find(|node| node["Hostname"] == "b")?;
        (b["ManagerStatus"] == "Reachable").then_some(())
    });

    hosts.ok('a', &["node", "demote", "b"]);
    until("b is a worker", || {
        let refused = hosts.shoal('b', &["node", "ls"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        (said.contains("Worker nodes can't be used") && !hosts.state('b').join("raft").exists())
            .then_some(())
    });
    until("its key is its own again", || key(&hosts, 'b').starts_with(b"-----BEGIN").then_some(()));
    hosts.until_ready(2);
    assert_eq!(pids(&hosts), before, "no task noticed");
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["client"].as_str().map(|_| ()), Some(()));

    assert_eq!(hosts.ok('b', &["leave"]), "Node left the swarm.\n");
    hosts.assert_untouched('b');
    assert!(!hosts.state('b').join("tasks").exists() || tasks_left(&hosts, 'b') == 0);
    until("a sees it down", || {
        let nodes = hosts.nodes('a');
        let b = nodes.iter().find(|node| node["Hostname"] == "b")?;
        (b["Status"] == "Down").then_some(())
    });
    until("its task runs elsewhere", || (hosts.tasks('a').len() == 2).then_some(()));
    hosts.ok('a', &["node", "rm", "b"]);
    // And it comes back as another node.
    let token = hosts.token('a', "manager");
    hosts.ok('b', &["join", "--token", &token, "10.77.0.1"]);
    hosts.until_ready(2);
}

fn tasks_left(hosts: &Hosts, host: char) -> usize {
    std::fs::read_dir(hosts.state(host).join("tasks")).map_or(0, Iterator::count)
}

#[test]
fn the_last_manager_leaves_only_by_force() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    hosts.ok('a', &["init"]);
    hosts.serve_web("1");
    let refused = hosts.fails('a', &["leave"]);
    assert!(
        refused.contains(
            "You are attempting to leave the swarm on a node that is participating as a manager. \
             Removing the last manager erases all current state of the swarm. Use `--force` to \
             ignore this message."
        ),
        "{refused}"
    );
    assert!(hosts.is('a', "active"));
    assert_eq!(hosts.ok('a', &["leave", "--force"]), "Node left the swarm.\n");
    hosts.assert_untouched('a');
    assert_eq!(tasks_left(&hosts, 'a'), 0);
    let first = hosts.ok('a', &["init"]);
    assert!(first.contains("is now a manager."), "{first}");
    assert!(hosts.lines('a', &["service", "ls", "--format", "json"]).is_empty());
    // Nothing of a membership is left for a daemon that starts after a leave.
    hosts.ok('a', &["leave", "--force"]);
    hosts.stop('a', Signal::SIGKILL);
    hosts.start('a');
    hosts.assert_untouched('a');
}

#[test]
fn one_of_two_managers_hears_what_its_leaving_would_do() {
    if !can_run() {
        return;
    }
    let hosts = Hosts::pair("manager");
    let refused = hosts.fails('b', &["leave"]);
    assert!(refused.contains("Removing this node leaves 1 managers out of 2."), "{refused}");
    hosts.ok('b', &["leave", "--force"]);
    hosts.assert_untouched('b');
    // It went in order: the other one decides alone.
    until("a leads alone", || hosts.shoal('a', &["service", "ls"]).status.success().then_some(()));
    until("a sees it down", || {
        let nodes = hosts.nodes('a');
        let b = nodes.iter().find(|node| node["Hostname"] == "b")?;
        (b["Status"] == "Down" && b["ManagerStatus"] == "").then_some(())
    });
}

#[test]
fn a_locked_manager_waits_for_its_key_while_its_tasks_serve() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    let init = hosts.ok('a', &["init", "--autolock"]);
    let unlock = init.split_whitespace().find(|word| word.starts_with("SWMKEY-1-")).unwrap();
    assert_eq!(hosts.ok('a', &["unlock-key", "-q"]).trim(), unlock);
    hosts.serve_web("1");
    let said = String::from_utf8(hosts.tell('a', &["unlock"], unlock).stderr).unwrap();
    assert!(said.contains("swarm is not locked"), "{said}");

    hosts.stop('a', Signal::SIGKILL);
    hosts.start('a');
    assert!(hosts.is('a', "locked"));
    let refused = hosts.fails('a', &["service", "ls"]);
    assert!(
        refused.contains(
            "Swarm is encrypted and needs to be unlocked before it can be used. Please use \
             \"shoal unlock\" to unlock it."
        ),
        "{refused}"
    );
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1", "while locked");
    let refused = hosts.fails('a', &["leave"]);
    assert!(refused.contains("Swarm is encrypted and locked."), "{refused}");

    let other = shoal_identity::UnlockKey::from_bytes([7; 32]).to_string();
    for wrong in [other.as_str(), "nonsense"] {
        let said = hosts.tell('a', &["unlock"], wrong);
        assert_eq!(said.status.code(), Some(1));
        let said = String::from_utf8(said.stderr).unwrap();
        let expected = "swarm could not be unlocked: invalid key provided";
        assert!(said.contains(expected), "{said}");
        assert!(hosts.is('a', "locked"));
    }
    let said = hosts.tell('a', &["unlock"], unlock);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    until("the manager leads", || (hosts.tasks('a').len() == 1).then_some(()));
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1");
    // Locked again, it can still be given up.
    hosts.stop('a', Signal::SIGTERM);
    hosts.start('a');
    assert!(hosts.is('a', "locked"));
    hosts.ok('a', &["leave", "--force"]);
    hosts.assert_untouched('a');
    assert_eq!(tasks_left(&hosts, 'a'), 0);
    assert!(hosts.get('b', "10.77.0.1:8080").is_err(), "its tasks are gone");
}

#[test]
fn a_new_root_reaches_every_node_and_cuts_nobody_off() {
    if !can_run() {
        return;
    }
    let hosts = Hosts::pair("worker");
    let file = |host, name: &str| {
        std::fs::read_to_string(hosts.state(host).join("certificates").join(name)).unwrap()
    };
    let before: Vec<_> = ['a', 'b'].map(|host| file(host, "node.pem")).to_vec();
    let old = file('b', "roots.pem");
    hosts.ok('a', &["ca", "--rotate", "-q"]);
    until("the roll-over is done", || {
        let done =
            file('a', "roots.pem") == file('b', "roots.pem") && file('b', "roots.pem") != old;
        (done && file('b', "roots.pem").matches("BEGIN CERTIFICATE").count() == 1).then_some(())
    });
    for (host, before) in ['a', 'b'].into_iter().zip(before) {
        assert_ne!(file(host, "node.pem"), before, "{host} has a certificate under the new root");
    }
    hosts.until_ready(2);
    let mode = std::fs::metadata(hosts.state('b').join("certificates/node.key")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_node_that_was_removed_says_so_and_can_come_back() {
    if !can_run() {
        return;
    }
    let hosts = Hosts::pair("worker");
    let ready = hosts.fails('a', &["node", "rm", "b"]);
    assert!(ready.contains("is not down and can't be removed"), "{ready}");
    hosts.ok('a', &["node", "rm", "--force", "b"]);
    assert_eq!(hosts.nodes('a').len(), 1);
    let error = until("b is told", || {
        let swarm = hosts.swarm('b');
        (swarm["LocalNodeState"] == "error").then(|| swarm["Error"].clone())
    });
    let removed =
        format!("node {} was removed from the swarm", hosts.swarm('b')["NodeID"]).replace('"', "");
    assert!(error.as_str().unwrap().contains(&removed), "{error}");
    hosts.ok('b', &["leave"]);
    hosts.assert_untouched('b');
    let token = hosts.token('a', "worker");
    hosts.ok('b', &["join", "--token", &token, "10.77.0.1"]);
    hosts.until_ready(2);
}
