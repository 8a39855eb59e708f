//! Nodes that come back as others than they went: with other addresses, another role, as a copy, or
//! in the middle of a join.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::hosts::{Hosts, can_run, run, until};

/// A column of a node's line in `node ls`.
fn status(hosts: &Hosts, through: char, host: &str, key: &str) -> Option<String> {
    let output = hosts.shoal(through, &["node", "ls", "--format", "json"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let nodes = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let node = { nodes }.find(|node| node["Hostname"] == host)?;
    Some(node[key].as_str().unwrap_or_default().to_owned())
}

fn create(hosts: &Hosts, host: char, name: &str) -> bool {
    let web = ["service", "create", "--detach", "--replicas", "0", "--name", name];
    let image = ["rootfs:/", "/bin/true"];
    hosts.shoal(host, &[&web[..], &image].concat()).status.success()
}

#[test]
fn managers_that_all_moved_find_together_by_a_name() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::three();
    let names = |net: u8| {
        let line = |host| format!("10.77.{net}.{host} managers.example\n");
        (1..=3).map(line).collect::<String>()
    };
    hosts.set_names(&names(0));
    for host in ['a', 'b', 'c'] {
        hosts.start(host);
    }
    hosts.ok('a', &["init"]);
    let token = hosts.token('a', "manager");
    for host in ['b', 'c'] {
        hosts.ok(host, &["join", "--token", &token, "managers.example"]);
    }
    hosts.until_ready(3);
    hosts.until_managers('a', 3);
    assert!(create(&hosts, 'b', "before"));

    for host in ['a', 'b', 'c'] {
        hosts.stop(host, Signal::SIGKILL);
    }
    hosts.set_names(&names(9));
    for (number, host) in (1..).zip(['a', 'b', 'c']) {
        hosts.move_to(host, &format!("10.77.9.{number}/24"));
    }
    for host in ['a', 'b', 'c'] {
        hosts.start(host);
    }
    until("a write", || create(&hosts, 'c', "after").then_some(()));
    for host in ['a', 'b', 'c'] {
        hosts.until_managers(host, 3);
    }
    hosts.until_ready(3);
    let services = hosts.lines('a', &["service", "ls", "--format", "json"]);
    assert_eq!(services.len(), 2, "{services:?}");
    until("the store has the new addresses", || {
        let moved = |(number, name): (usize, &str)| {
            let text = hosts.ok('b', &["node", "inspect", name]);
            text.contains(&format!("10.77.9.{number}:"))
        };
        (1..).zip(["a", "b", "c"]).all(moved).then_some(())
    });
}

#[test]
fn a_manager_that_was_demoted_and_promoted_while_it_was_down_begins_anew() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::managers("10.77.0.1");
    hosts.stop('b', Signal::SIGKILL);
    hosts.ok('a', &["node", "demote", "b"]);
    until("b is out", || status(&hosts, 'a', "b", "ManagerStatus").filter(String::is_empty));
    hosts.ok('a', &["node", "promote", "b"]);
    hosts.start('b');
    hosts.until_managers('a', 3);
    until("b answers", || status(&hosts, 'b', "b", "ManagerStatus").filter(|is| !is.is_empty()));
    // Its vote counts: with it two of three decide.
    hosts.stop('c', Signal::SIGKILL);
    until("a write without c", || create(&hosts, 'b', "with-b").then_some(()));
    // And once more: what it has now is what it goes on with.
    hosts.stop('b', Signal::SIGKILL);
    hosts.start('b');
    until("a write after a restart", || create(&hosts, 'b', "again").then_some(()));
}

#[test]
fn of_a_node_and_its_copy_the_copy_is_refused() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::three();
    hosts.start('a');
    hosts.start('b');
    hosts.ok('a', &["init"]);
    let token = hosts.token('a', "worker");
    hosts.ok('b', &["join", "--token", &token, "10.77.0.1"]);
    hosts.until_ready(2);
    let (from, to) = (hosts.state('b'), hosts.state('c'));
    std::fs::create_dir(&to).unwrap();
    for name in ["node.json", "certificates", "managers.json"] {
        run("cp", &["-a", from.join(name).to_str().unwrap(), to.to_str().unwrap()]);
    }
    hosts.start('c');
    let error = until("the copy is told", || {
        let swarm = hosts.swarm('c');
        (swarm["LocalNodeState"] == "error").then(|| swarm["Error"].to_string())
    });
    assert!(error.contains("cop"), "{error}");
    let told = std::time::Instant::now();
    until("the node itself stays", || {
        assert!(hosts.is('b', "active"), "{}", hosts.swarm('b'));
        assert!(hosts.is('c', "error"), "{}", hosts.swarm('c'));
        (told.elapsed().as_secs() >= 3).then_some(())
    });
    assert_eq!(status(&hosts, 'a', "b", "Status").unwrap(), "Ready");
    // The copy becomes a node of its own.
    hosts.ok('c', &["leave"]);
    hosts.assert_untouched('c');
    hosts.ok('c', &["join", "--token", &token, "10.77.0.1"]);
    hosts.until_ready(3);
}

#[test]
fn a_join_that_takes_too_long_goes_on_in_the_background_and_after_a_restart() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    hosts.ok('a', &["init"]);
    // Where nobody else reaches it: it is let in, and cannot take part.
    let deaf = [("SHOAL_LISTEN_ADDR", "127.0.0.1:2377"), ("SHOAL_ADVERTISE_ADDR", "10.77.0.2")];
    hosts.start_with('b', &deaf);
    let token = hosts.token('a', "manager");
    let late = hosts.fails('b', &["join", "--token", &token, "10.77.0.1"]);
    assert!(
        late.contains(
            "Timeout was reached before node joined. The attempt to join the swarm will continue \
             in the background. Use the \"shoal info\" command to see the current swarm status of \
             your node."
        ),
        "{late}"
    );
    assert!(hosts.is('b', "pending"), "{}", hosts.swarm('b'));
    let refused = hosts.fails('b', &["node", "ls"]);
    assert!(refused.contains("it is still joining"), "{refused}");
    let refused = hosts.fails('b', &["join", "--token", &token, "10.77.0.1"]);
    assert!(refused.contains("This node is already part of a swarm"), "{refused}");
    let before = hosts.swarm('b')["NodeID"].clone();
    hosts.stop('b', Signal::SIGKILL);
    hosts.start_with('b', &deaf);
    assert!(hosts.is('b', "pending"), "{}", hosts.swarm('b'));
    hosts.stop('b', Signal::SIGKILL);
    // Its operator has mended it.
    hosts.start('b');
    until("it takes part", || hosts.is('b', "active").then_some(()));
    assert_eq!(hosts.swarm('b')["NodeID"], before, "one node all the time");
    hosts.until_managers('a', 2);
    hosts.until_ready(2);
}
