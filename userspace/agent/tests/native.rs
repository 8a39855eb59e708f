//! Real tasks: shims, namespaces, cgroups, and what a restarted daemon makes of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::lower::Event;
use common::manager::Manager;
use common::node::{Node, alive, script, signal, task};
use common::{eventually, root};
use nix::sys::signal::Signal;
use shoal_api::TaskState;

/// Runs until told otherwise: `USR1` ends it with 7, `TERM` with 0.
const PATIENT: &str = "trap 'exit 7' USR1; trap 'exit 0' TERM; echo up; \
                       while :; do sleep 0.05; done";
/// Does not hear `TERM`.
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.05; done";

macro_rules! need_root {
    () => {
        if !root() {
            return;
        }
    };
}

#[tokio::test]
async fn a_task_is_alone_in_its_namespaces_and_its_end_is_reported() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    let probe = "echo pid $$; echo host $(cat /proc/sys/kernel/hostname); \
        touch /usr/x || echo root read-only; touch /tmp/x /run/x && echo tmp writable; \
        echo interfaces $(tail -n +3 /proc/net/dev | cut -d: -f1); \
        echo cgroup $(grep ^0:: /proc/self/cgroup); \
        echo $(grep CapEff /proc/self/status) $(grep NoNewPrivs /proc/self/status); \
        echo env $GREETING $HOSTNAME $SHOAL_TASK_NAME $SHOAL_TASK_ID $SHOAL_NODE_ID \
        $SHOAL_NODE_NAME; \
        echo processes $(ls -d /proc/[0-9]* | wc -l); echo dev $(ls /dev); \
        echo x > /proc/sys/kernel/hostname || echo proc sys read-only; \
        mknod /tmp/disk b 254 0 && head -c1 /tmp/disk || echo no devices; \
        mknod /dev/disk b 254 0 || echo dev read-only; \
        echo gone > /dev/null && echo null works; exit 3";
    manager.put(script("t0123456789abcdef", probe));
    let status = manager.reached("t0123456789abcdef", TaskState::Complete).await;
    let output = node.output("t0123456789abcdef");
    assert_eq!(status.state(), TaskState::Failed, "{status:?} {output}");
    assert_eq!(status.err, "task: non-zero exit (3)");
    assert_eq!((status.exit_code, status.message.as_str()), (Some(3), "started"));
    for line in [
        "pid 1",
        "host t0123456789a",
        "root read-only",
        "tmp writable",
        "interfaces lo",
        "cgroup 0::/",
        // Docker's default set.
        "CapEff: 00000000a80425fb NoNewPrivs: 1",
        "env hello t0123456789a web.1 t0123456789abcdef node1 n1",
        "dev fd full null ptmx pts random shm stderr stdin stdout tty urandom zero",
        "proc sys read-only",
        "no devices",
        "dev read-only",
        "null works",
    ] {
        assert!(output.lines().any(|found| found == line), "{line:?} is not in:\n{output}");
    }
    assert!(output.contains("Read-only file system"), "standard error is kept:\n{output}");
}

#[tokio::test]
async fn the_network_is_there_before_the_task_and_goes_after_it() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    let mut first = script("t1", PATIENT);
    first.desired_state = TaskState::Ready.into();
    manager.put(first);
    manager.reached("t1", TaskState::Ready).await;
    assert_eq!(node.output("t1"), "", "a task that is only ready does not run");
    let (link, inode) = node.kernel.0.lock().links["t1"].clone();
    assert_eq!((link.prefix, link.gateway.to_string()), (24, "10.0.0.1".to_owned()));
    manager.desire("t1", TaskState::Running);
    let status = manager.reached("t1", TaskState::Running).await;
    let netns = fs::read_link(format!("/proc/{}/ns/net", status.pid)).unwrap();
    assert_eq!(netns.to_str(), Some(format!("net:[{inode}]").as_str()));
    signal(status.pid, Signal::SIGUSR1);
    let status = manager.reached("t1", TaskState::Complete).await;
    assert_eq!(status.exit_code, Some(7));
    eventually("the network goes", || {
        let held = node.kernel.0.lock();
        (held.events.last() == Some(&Event::Detached("t1".into()))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_task_that_is_to_stop_gets_sigterm_first_and_sigkill_after_its_grace_period() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    for (id, commands, code) in [("polite", PATIENT, 0), ("stubborn", STUBBORN, 137)] {
        manager.put(script(id, commands));
        eventually("it runs", || node.output(id).contains("up").then_some(())).await;
        manager.desire(id, TaskState::Shutdown);
        let status = manager.reached(id, TaskState::Complete).await;
        assert_eq!(status.state(), TaskState::Shutdown, "{id}: {status:?}");
        assert_eq!((status.exit_code, status.err.as_str()), (Some(code), ""), "{id}");
    }
}

#[tokio::test]
async fn a_restarted_daemon_finds_its_task_running_and_sees_it_end() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let agent = node.agent(&[&manager.addr]);
    manager.put(script("t1", PATIENT));
    let before = manager.reached("t1", TaskState::Running).await;
    let netns = fs::read_link(format!("/proc/{}/ns/net", before.pid)).unwrap();
    agent.shutdown().await;
    assert!(alive(before.pid));
    node.kernel.0.lock().links.clear();

    let _agent = node.agent(&[&manager.addr]);
    let link =
        eventually("the task is attached again", || node.kernel.0.lock().links.get("t1").cloned())
            .await;
    assert_eq!(netns.to_str(), Some(format!("net:[{}]", link.1).as_str()));
    eventually("its status is said again", || {
        (manager.state.lock().requests.len() == 2).then_some(())
    })
    .await;
    assert_eq!(manager.reached("t1", TaskState::Running).await.pid, before.pid);
    signal(before.pid, Signal::SIGUSR1);
    let status = manager.reached("t1", TaskState::Complete).await;
    assert_eq!((status.state(), status.exit_code), (TaskState::Failed, Some(7)));
}

#[tokio::test]
async fn a_task_that_ended_while_the_daemon_was_away_is_reported_by_the_next() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    // Dropped without a goodbye, as by a kill.
    drop({
        let agent = node.agent(&[&manager.addr]);
        manager.put(script("t1", PATIENT));
        manager.reached("t1", TaskState::Running).await;
        eventually("it runs", || node.output("t1").contains("up").then_some(())).await;
        agent
    });
    let pid = manager.last_status("t1").unwrap().pid;
    signal(pid, Signal::SIGUSR1);
    eventually("its end is on disk", || {
        node.task_dir("t1").join("exit.json").exists().then_some(())
    })
    .await;
    assert_eq!(manager.last_status("t1").unwrap().state(), TaskState::Running);
    let _agent = node.agent(&[&manager.addr]);
    let status = manager.reached("t1", TaskState::Complete).await;
    assert_eq!((status.state(), status.exit_code), (TaskState::Failed, Some(7)));
}

#[tokio::test]
async fn without_a_manager_a_restarted_daemon_keeps_its_tasks_and_touches_no_table() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let agent = node.agent(&[&manager.addr]);
    manager.put(script("t1", PATIENT));
    let pid = manager.reached("t1", TaskState::Running).await.pid;
    agent.shutdown().await;
    drop(manager);
    node.kernel.0.lock().events.clear();

    let agent = node.agent(&["127.0.0.1:1"]);
    eventually("the task is attached again", || {
        (node.kernel.0.lock().events == [Event::Attached("t1".into())]).then_some(())
    })
    .await;
    assert!(alive(pid));
    assert_eq!(agent.held_index(), 0);
    assert_eq!(agent.counters().await.unwrap()["forwarded"], (2, 128));
}

#[tokio::test]
async fn a_task_outside_the_complete_set_is_stopped_and_leaves_nothing() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let agent = node.agent(&[&manager.addr]);
    manager.put(script("t1", PATIENT));
    let pid = manager.reached("t1", TaskState::Running).await.pid;
    agent.shutdown().await;
    manager.state.lock().tasks.clear();
    let _agent = node.agent(&[&manager.addr]);
    eventually("the folder goes", || (!node.task_dir("t1").exists()).then_some(())).await;
    assert!(!alive(pid));
    assert_eq!(node.kernel.0.lock().links.len(), 0);
    assert!(node.task_cgroup("t1").is_none_or(|cgroup| !cgroup.exists()));
}

#[tokio::test]
async fn a_node_that_leaves_stops_its_tasks_with_their_grace_and_leaves_nothing() {
    need_root!();
    for agent_runs in [true, false] {
        let (node, manager) = (Node::new(), Manager::start().await);
        let agent = node.agent(&[&manager.addr]);
        let mut pids = Vec::new();
        for (id, text) in [("t1", PATIENT), ("t2", STUBBORN), ("t3", PATIENT)] {
            manager.put(script(id, text));
            pids.push(manager.reached(id, TaskState::Running).await.pid);
        }
        eventually("they are up", || {
            ["t1", "t2", "t3"].iter().all(|id| node.output(id).contains("up")).then_some(())
        })
        .await;
        let state = node.dir.path().join("state");
        let began = Instant::now();
        if agent_runs {
            agent.remove_all().await;
        } else {
            agent.shutdown().await;
            // Of one task the files were lost.
            fs::remove_file(state.join("tasks/t3/task.pb")).unwrap();
            shoal_agent::remove_tasks(&state, node.cgroup.clone()).await.unwrap();
        }
        // The stubborn one was given its grace period.
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert!(!pids.iter().any(|pid| alive(*pid)), "{pids:?}");
        assert_eq!(state.read_dir().unwrap().count(), 0);
        for id in ["t1", "t2", "t3"] {
            assert!(node.task_cgroup(id).is_none_or(|cgroup| !cgroup.exists()));
        }
        // Again, with nothing there.
        shoal_agent::remove_tasks(&state, node.cgroup.clone()).await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_run_says_why_in_dockers_words() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    let cases = [
        (
            task("a", "rootfs:/no/such", &["x"]),
            TaskState::Rejected,
            "No such image: rootfs:/no/such",
        ),
        (task("b", "rootfs:/", &[]), TaskState::Rejected, "no command specified"),
        (
            task("c", "rootfs:/", &["no-such-command"]),
            TaskState::Failed,
            "starting container failed: exec: \"no-such-command\": executable file not found in $PATH",
        ),
        (
            task("d", "rootfs:/", &["/no/such"]),
            TaskState::Failed,
            "starting container failed: exec: \"/no/such\": stat /no/such: no such file or directory",
        ),
        (
            task("e", "rootfs:/", &["/etc/passwd"]),
            TaskState::Failed,
            "starting container failed: exec: \"/etc/passwd\": permission denied",
        ),
    ];
    for (task, state, err) in cases {
        let id = task.id.clone();
        manager.put(task);
        let status = manager.reached(&id, TaskState::Complete).await;
        assert_eq!((status.state(), status.err.as_str()), (state, err));
        eventually("its cgroup goes", || {
            node.task_cgroup(&id).is_none_or(|cgroup| !cgroup.exists()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_task_that_cannot_be_attached_is_rejected_and_a_slow_kernel_is_waited_for() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    node.kernel.0.lock().attach_failures = 2;
    let _agent = node.agent(&[&manager.addr]);
    manager.put(script("t1", "exit 0"));
    assert_eq!(manager.reached("t1", TaskState::Complete).await.state(), TaskState::Complete);
    node.kernel.0.lock().attach_failures = usize::MAX;
    manager.put(script("t2", "exit 0"));
    let status = manager.reached("t2", TaskState::Complete).await;
    assert_eq!(status.err, "attaching the network failed: the kernel said no");
    assert_eq!(node.output("t2"), "");
}

#[tokio::test]
async fn a_task_that_forks_leaves_no_process_behind() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    manager.put(script(
        "t1",
        "trap 'exit 0' USR1; for i in 1 2 3; do sleep 1000 & setsid sleep 1000 & done; \
         echo up; while :; do sleep 0.05; done",
    ));
    let pid = manager.reached("t1", TaskState::Running).await.pid;
    eventually("it runs", || node.output("t1").contains("up").then_some(())).await;
    let Some(cgroup) = node.task_cgroup("t1") else {
        eprintln!("SKIPPED: no cgroup version 2 tree");
        return;
    };
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    let pids: Vec<u32> = procs.lines().map(|line| line.parse().unwrap()).collect();
    assert!(pids.len() >= 7 && pids.contains(&pid), "{pids:?}");
    signal(pid, Signal::SIGUSR1);
    manager.reached("t1", TaskState::Complete).await;
    eventually("the cgroup goes", || (!cgroup.exists()).then_some(())).await;
    assert_eq!(pids.iter().filter(|&&pid| alive(pid)).count(), 0);
}

#[tokio::test]
async fn a_killed_shim_takes_its_task_along_and_is_reported() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    manager.put(script("t1", PATIENT));
    let pid = manager.reached("t1", TaskState::Running).await.pid;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap();
    signal(parent.parse().unwrap(), Signal::SIGKILL);
    let status = manager.reached("t1", TaskState::Complete).await;
    assert_eq!(status.state(), TaskState::Failed);
    assert_eq!(status.err, "the task's shim died before it could tell how the task ended");
    eventually("the task is gone", || (!alive(pid)).then_some(())).await;
}

#[tokio::test]
async fn no_mount_of_a_task_reaches_the_host() {
    need_root!();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = |table: &str, node: &Node| table.matches(node.dir.path().to_str().unwrap()).count();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    manager.put(script("t1", PATIENT));
    let pid = manager.reached("t1", TaskState::Running).await.pid;
    assert_eq!(ours(&mounts(), &node), 0);
    let inside = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let host_only = |line: &&str| {
        [" - nsfs ", " - bpf ", " - cgroup", " - devtmpfs "].iter().any(|kind| line.contains(kind))
    };
    assert_eq!(inside.lines().filter(host_only).count(), 0, "{inside}");
    let root = inside.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().starts_with("ro,"), "{root}");
}

#[tokio::test]
async fn an_image_folder_is_the_whole_world_of_its_task() {
    need_root!();
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    let image = node.dir.path().join("image");
    for folder in ["proc", "dev", "tmp", "bin"] {
        fs::create_dir_all(image.join(folder)).unwrap();
    }
    for file in ["/bin/sh", "/bin/ls"].iter().copied().map(str::to_owned).chain(libraries()) {
        let target = image.join(file.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
    let reference = format!("rootfs:{}", image.display());
    manager.put(task("t1", &reference, &["sh", "-c", "cd /; echo *; echo > /tmp/x && ls /tmp"]));
    let status = manager.reached("t1", TaskState::Complete).await;
    let output = node.output("t1");
    assert_eq!(status.state(), TaskState::Complete, "{status:?} {output}");
    let mut folders: Vec<_> = output.lines().next().unwrap().split(' ').collect();
    folders.retain(|folder| !folder.starts_with("lib"));
    assert_eq!(folders, ["bin", "dev", "proc", "tmp"]);
    assert_eq!(output.lines().nth(1), Some("x"));

    fs::remove_dir(image.join("proc")).unwrap();
    manager.put(task("t2", &reference, &["sh"]));
    let status = manager.reached("t2", TaskState::Complete).await;
    assert_eq!(
        status.err,
        "preparing container failed: the image has no folder /proc: make an empty one"
    );
}

#[tokio::test]
async fn the_daemons_own_folder_is_hidden_from_tasks_of_the_hosts_root() {
    need_root!();
    // Not below /tmp, which is the task's own anyway; and reached by a link.
    let folder = tempfile::tempdir_in("/var/lib").unwrap();
    let link = folder.path().join("link");
    fs::create_dir(folder.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    let (node, manager) = (Node::new(), Manager::start().await);
    let mut config = node.config(&[&manager.addr]);
    config.state_dir = link.join("state");
    let _agent = shoal_agent::Agent::start(config, node.kernel.clone()).unwrap();
    let real = folder.path().join("real");
    let look = format!("ls -A {0}; ls -A {0}/state | wc -l", real.display());
    manager.put(script("t1", &look));
    assert_eq!(manager.reached("t1", TaskState::Complete).await.exit_code, Some(0));
    let output = fs::read_to_string(real.join("state/tasks/t1/output.log")).unwrap();
    assert_eq!(output, "state\n0\n");
}

/// What `/bin/sh` and `/bin/ls` are linked with.
fn libraries() -> Vec<String> {
    let output =
        std::process::Command::new("ldd").args(["/bin/sh", "/bin/ls"]).output().unwrap().stdout;
    let text = String::from_utf8(output).unwrap();
    let words = text.split_whitespace().filter(|word| word.starts_with("/lib"));
    words.filter(|word| Path::new(word).is_file()).map(str::to_owned).collect()
}
