//! A service on one host and on two, through the daemon's end and its return.

use nix::sys::signal::Signal;

use crate::hosts::{Hosts, can_run, until};

#[test]
fn a_service_is_served_scaled_and_removed_and_outlives_its_daemon() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    let refusal = hosts.fails('a', &["service", "ls"]);
    assert!(refusal.contains("Use \"shoal init\""), "{refusal}");
    let init = hosts.ok('a', &["init"]);
    assert!(init.contains("is now a manager."), "{init}");
    assert!(init.contains("shoal join --token SWMTKN-1-"), "{init}");
    assert!(init.contains(" 10.77.0.1:2377\n"), "{init}");
    assert!(hosts.fails('a', &["init"]).contains("already part of a swarm"));

    let web = ["service", "create", "--name", "web", "--replicas", "3", "-p", "8080:80"];
    let (image, shoal) = hosts.image();
    let created = hosts.shoal('a', &[&web[..], &[&image, &shoal, "responder"]].concat());
    let stderr = String::from_utf8_lossy(&created.stderr);
    assert!(created.status.success(), "{stderr}\n{}", hosts.logs());
    assert!(stderr.ends_with("verify: Service converged\n"), "{stderr}");
    assert_eq!(created.stdout.trim_ascii().len(), 25, "stdout holds the id alone");

    // From the first answer on: that is what converged means.
    let mut tasks = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let answer = hosts.get('b', "10.77.0.1:8080").expect("the service is there");
        assert!(answer["client"].as_str().unwrap().starts_with("10.77.0.2:"), "{answer}");
        assert_eq!(answer["node"], "a");
        tasks.insert(answer["task"].as_str().unwrap().to_owned());
    }
    assert!(tasks.len() > 1, "one task answered everything: {tasks:?}");

    let clash = ["service", "create", "--name", "two", "-p", "8080:81", "rootfs:/", "sleep", "1"];
    let clash = hosts.fails('a', &clash);
    assert!(clash.contains("port '8080' is already in use by service 'web'"), "{clash}");
    let missing = hosts.fails('a', &["service", "create", "--name", "x", "rootfs:/gone", "x"]);
    let expected = "service x was not created, since none of its tasks can run: \
                    No such image: rootfs:/gone\n";
    assert!(missing.ends_with(expected), "{missing}");
    until("only web is left", || {
        let services = hosts.lines('a', &["service", "ls", "--format", "json"]);
        (services.len() == 1).then_some(())
    });

    assert_eq!(hosts.ok('a', &["service", "scale", "web=1"]), "web scaled to 1\n");
    let running = |hosts: &Hosts| {
        let tasks = hosts.lines('a', &["service", "ps", "web", "--format", "json"]);
        tasks.into_iter().filter(|task| task["State"] == "running").collect::<Vec<_>>()
    };
    let before = until("two tasks have ended", || Some(running(&hosts)).filter(|t| t.len() == 1));
    for _ in 0..5 {
        assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1");
    }

    hosts.stop('a', Signal::SIGKILL);
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1", "without a daemon");
    hosts.start('a');
    let after = until("the manager leads again", || {
        let list = hosts.shoal('a', &["service", "ps", "web"]);
        list.status.success().then(|| running(&hosts))
    });
    assert_eq!(after.len(), 1);
    assert_eq!(after[0]["FullID"], before[0]["FullID"], "the task was taken over");
    assert_eq!(after[0]["PID"], before[0]["PID"]);
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1");

    assert_eq!(hosts.stop('a', Signal::SIGTERM), Some(0));
    assert!(!hosts.state('a').join("shoal.sock").exists());
    assert_eq!(hosts.get('b', "10.77.0.1:8080").unwrap()["task"], "web.1", "after an orderly end");
    hosts.start('a');
    assert_eq!(hosts.ok('a', &["service", "rm", "web"]), "web\n");
    until("nobody answers", || hosts.get('b', "10.77.0.1:8080").is_err().then_some(()));
}

#[test]
fn a_worker_joins_comes_back_and_says_what_it_is_not() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::pair("worker");
    let refusal = hosts.fails('b', &["node", "ls"]);
    assert!(refusal.contains("Worker nodes can't be used to view or modify"), "{refusal}");
    let ready = |hosts: &Hosts| {
        let nodes = hosts.lines('a', &["node", "ls", "--format", "json"]);
        nodes.iter().filter(|node| node["Status"] == "Ready").count() == 2
    };
    until("both nodes are ready", || ready(&hosts).then_some(()));

    // A task on each host, and each host answers for both.
    let web = ["service", "create", "--name", "web", "--replicas", "2", "-p", "8080:80"];
    let (image, shoal) = hosts.image();
    hosts.ok('a', &[&web[..], &[&image, &shoal, "responder"]].concat());
    let nodes = |client, address: &str| {
        let answers = (0..30).map(|_| hosts.get(client, address).expect("the service is there"));
        let nodes = answers.map(|answer| answer["node"].as_str().unwrap().to_owned());
        nodes.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(nodes('b', "10.77.0.1:8080"), 2);
    assert_eq!(nodes('a', "10.77.0.2:8080"), 2);

    let id = hosts.info('b')["Swarm"]["NodeID"].clone();
    hosts.stop('b', Signal::SIGKILL);
    hosts.start('b');
    assert_eq!(hosts.info('b')["Swarm"]["NodeID"], id);
    assert_eq!(hosts.info('b')["Swarm"]["LocalNodeState"], "active");
    until("its kernel holds what the managers want", || {
        let held = |host| hosts.info(host)["HeldIndex"].as_u64().unwrap_or(0);
        (held('b') > 0 && held('b') >= held('a')).then_some(())
    });
    until("both nodes are ready", || ready(&hosts).then_some(()));
}

#[test]
fn what_cannot_be_done_is_one_sentence_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    let second = hosts.fails('a', &["daemon"]);
    assert!(second.contains("is in use by another shoal daemon"), "{second}");
    let other = hosts.dir.path().join("other");
    let other = ["daemon", "--state-dir", other.to_str().unwrap()];
    let second = hosts.fails('a', &other);
    assert!(second.contains("another daemon answers at unix://"), "{second}");

    let wrong = hosts.fails('a', &["init", "--advertise-addr", "eth9"]);
    assert!(wrong.contains("interface eth9 has no IP address"), "{wrong}");
    hosts.assert_untouched('a');
    let foreign = hosts.fails('a', &["init", "--advertise-addr", "10.99.0.1"]);
    assert!(
        foreign.contains("10.99.0.1 is not an address of this machine (10.77.0.1 on eth0)"),
        "{foreign}"
    );
    hosts.assert_untouched('a');
    let nothing = hosts.fails('a', &["leave"]);
    assert!(nothing.contains("This node is not part of a swarm"), "{nothing}");
    let nothing = hosts.fails('a', &["init", "--force-new-cluster"]);
    assert!(nothing.contains("This node is not part of a swarm"), "{nothing}");
    hosts.assert_untouched('a');
    // And then it works.
    hosts.ok('a', &["init"]);
    assert_eq!(hosts.info('a')["Swarm"]["LocalNodeState"], "active");
}

#[test]
fn a_state_directory_of_another_release_is_refused_and_left_alone() {
    if !can_run() {
        return;
    }
    let hosts = Hosts::new();
    std::fs::create_dir(hosts.state('a')).unwrap();
    let record = hosts.state('a').join("node.json");
    std::fs::write(&record, "{\"format\": 7}").unwrap();
    let refused = hosts.fails('a', &["daemon"]);
    assert!(refused.contains("has format 7, and this shoal"), "{refused}");
    std::fs::write(&record, "{\"phase\": \"act").unwrap();
    let refused = hosts.fails('a', &["daemon"]);
    assert!(refused.contains("node.json is damaged"), "{refused}");
    assert_eq!(std::fs::read_to_string(&record).unwrap(), "{\"phase\": \"act");
}
