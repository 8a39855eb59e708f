//! A cluster that comes back: from one manager of two, and from a backup.

use nix::sys::signal::Signal;

use crate::hosts::{Hosts, can_run, until};

#[test]
fn one_manager_goes_on_by_force_when_the_other_is_lost() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::pair("manager");
    hosts.serve_web("1");
    hosts.stop('b', Signal::SIGKILL);
    let refused = until("the quorum is lost", || {
        let refused = hosts.shoal('a', &["service", "ls"]);
        let said = String::from_utf8(refused.stderr).unwrap();
        said.contains("does not have a leader").then_some(said)
    });
    assert!(refused.contains("too few managers are online"), "{refused}");
    let init = hosts.ok('a', &["init", "--force-new-cluster"]);
    assert!(init.contains("is now a manager."), "{init}");
    until("the service is there", || {
        let services = hosts.shoal('a', &["service", "ls", "--format", "json"]);
        String::from_utf8(services.stdout).unwrap().contains("\"web\"").then_some(())
    });
    until("b is no manager any more", || {
        let nodes = hosts.nodes('a');
        let b = nodes.iter().find(|node| node["Hostname"] == "b")?;
        (b["ManagerStatus"] == "" && b["Status"] == "Down").then_some(())
    });
    until("its task runs", || hosts.get('b', "10.77.0.1:8080").ok());
    // A restart goes on from what is new.
    hosts.stop('a', Signal::SIGKILL);
    hosts.start('a');
    until("it leads again, and the task on it runs on", || {
        // On the lost node one may run as well: nobody knows.
        let tasks = hosts.tasks('a');
        tasks.iter().any(|task| task["Node"] == "a").then_some(())
    });
    let token = hosts.token('a', "worker");
    assert!(token.starts_with("SWMTKN-1-"));
}

#[test]
fn a_backup_brings_the_cluster_back_and_a_damaged_one_touches_nothing() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::pair("worker");
    hosts.serve_web("2");
    let file = hosts.dir.path().join("cluster.backup");
    let key = hosts.dir.path().join("backup.key");
    let (file, key) = (file.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned());
    hosts.ok('a', &["backup", "--key-file", &key, &file]);
    let refused = hosts.fails('b', &["backup", "--key-file", &key, &format!("{file}.b")]);
    assert!(refused.contains("Worker nodes can't be used"), "{refused}");
    let refused = hosts.fails('a', &["restore", "--key-file", &key, &file]);
    assert!(refused.contains("already part of a swarm"), "{refused}");
    let before = hosts.swarm('a');

    // The manager's machine is lost, with all that was on it.
    hosts.ok('a', &["leave", "--force"]);
    hosts.assert_untouched('a');
    let mut bytes = std::fs::read(&file).unwrap();
    let damaged = format!("{file}.damaged");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, &bytes).unwrap();
    assert!(!hosts.fails('a', &["restore", "--key-file", &key, &damaged]).is_empty());
    hosts.assert_untouched('a');
    std::fs::write(&damaged, "something else").unwrap();
    let refused = hosts.fails('a', &["restore", "--key-file", &key, &damaged]);
    assert!(refused.contains("not a backup of Shoal"), "{refused}");
    hosts.assert_untouched('a');

    hosts.ok('a', &["restore", "--key-file", &key, &file]);
    assert!(hosts.is('a', "inactive"));
    assert!(hosts.fails('a', &["init"]).contains("--force-new-cluster"));
    // Also after a restart of the daemon.
    hosts.stop('a', Signal::SIGTERM);
    hosts.start('a');
    assert!(hosts.is('a', "inactive"));
    hosts.ok('a', &["init", "--force-new-cluster"]);
    let after = hosts.swarm('a');
    assert_eq!(after["NodeID"], before["NodeID"]);
    assert_eq!(after["Cluster"]["ID"], before["Cluster"]["ID"]);
    // The worker never left, and finds it again.
    hosts.until_ready(2);
    until("both tasks run", || (hosts.tasks('a').len() == 2).then_some(()));
    until("the service answers", || hosts.get('b', "10.77.0.1:8080").ok());
}

#[test]
fn what_a_killed_init_left_is_taken_away() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    hosts.ok('a', &["init"]);
    hosts.stop('a', Signal::SIGKILL);
    // As it stands on the disk before the cluster is founded.
    let record = hosts.state('a').join("node.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replacen("\"active\"", "\"founding\"", 1)).unwrap();
    hosts.start('a');
    hosts.assert_untouched('a');
    hosts.ok('a', &["init"]);
}

#[test]
fn a_restored_manager_with_autolock_wants_its_key_after_a_restart() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    hosts.ok('a', &["init", "--autolock"]);
    let unlock = hosts.ok('a', &["unlock-key", "-q"]);
    let file = hosts.dir.path().join("cluster.backup").to_str().unwrap().to_owned();
    let key = hosts.dir.path().join("backup.key").to_str().unwrap().to_owned();
    hosts.ok('a', &["backup", "--key-file", &key, &file]);
    hosts.ok('a', &["leave", "--force"]);
    hosts.ok('a', &["restore", "--key-file", &key, &file]);
    hosts.stop('a', Signal::SIGTERM);
    hosts.start('a');
    assert!(hosts.is('a', "locked"));
    let refused = hosts.fails('a', &["init", "--force-new-cluster"]);
    assert!(refused.contains("Swarm is encrypted and needs to be unlocked"), "{refused}");
    assert!(hosts.tell('a', &["unlock"], &unlock).status.success());
    assert!(hosts.is('a', "inactive"));
    hosts.ok('a', &["init", "--force-new-cluster"]);
    assert!(hosts.is('a', "active"));
    assert_eq!(hosts.ok('a', &["unlock-key", "-q"]), unlock);
}

#[test]
fn a_recovery_by_force_that_fails_leaves_the_manager_as_it_was() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    hosts.ok('a', &["init"]);
    let before = hosts.swarm('a');
    let force = |more: &[&str]| {
        let said = hosts.fails('a', &[&["init", "--force-new-cluster"][..], more].concat());
        let still = hosts.swarm('a');
        assert_eq!(still["NodeID"], before["NodeID"]);
        assert_eq!(still["ControlAvailable"], true, "{said}");
        until("it leads", || hosts.shoal('a', &["service", "ls"]).status.success().then_some(()));
        said
    };
    let said = force(&["--listen-addr", "10.99.0.1:2377"]);
    assert!(said.contains("10.99.0.1 is not an address of this machine"), "{said}");
    let said = force(&["--listen-addr", "eth7"]);
    assert!(said.contains("eth7"), "{said}");
    let said = force(&["--advertise-addr", "10.99.0.1"]);
    assert!(said.contains("10.99.0.1 is not an address of this machine"), "{said}");
    let said = force(&["--data-path-port", "5000"]);
    assert!(said.contains("data path port of a cluster cannot be changed"), "{said}");
    // With the manager stopped already: the record cannot be written.
    let obstacle = hosts.state('a').join("node.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    let said = force(&[]);
    assert!(said.contains("cannot write"), "{said}");
    std::fs::remove_dir(&obstacle).unwrap();
    hosts.ok('a', &["init", "--force-new-cluster"]);
    until("it leads", || hosts.shoal('a', &["service", "ls"]).status.success().then_some(()));
    hosts.stop('a', Signal::SIGKILL);
    hosts.start('a');
    until("it leads", || hosts.shoal('a', &["service", "ls"]).status.success().then_some(()));
}
