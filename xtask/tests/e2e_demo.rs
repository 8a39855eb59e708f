//! A demo that is killed leaves traces, and `lab down` takes them away.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_tests::lab::{Lab, daemon, registry, wait_for};
use shoal_tests::{needs_root, root, unique};

/// Everything on this machine that carries the lab's prefix.
fn traces(lab: &Lab) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["/run/netns".into(), daemon::cgroup_mount().unwrap_or_default()] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", lab.prefix())) {
                found.push(name);
            }
        }
    }
    let dir = lab.dir().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&dir)).map(str::to_owned));
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).into_owned();
        if cmdline.contains(&dir) {
            found.push(cmdline);
        }
    }
    found
}

fn demo(prefix: &str) -> std::process::Child {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_xtask"));
    demo.args(["demo", "--prefix", prefix]).stdout(Stdio::null()).stderr(Stdio::null());
    demo.spawn().unwrap_or_else(|error| panic!("cannot start a demo: {error}"))
}

fn wait_for_daemons(lab: &Lab) {
    wait_for("the demo's daemons to run", Duration::from_secs(120), || {
        let running = lab.nodes().iter().all(|host| lab.daemon_pid(host).is_some());
        anyhow::ensure!(running, "not all of them run yet");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn lab_down_takes_away_what_a_killed_demo_left() {
    needs_root!();
    let lab = Lab::new(&root(), &unique("k"), 3).unwrap();
    let mut demo = demo(lab.prefix());
    wait_for_daemons(&lab);
    kill(Pid::from_raw(i32::try_from(demo.id()).unwrap()), Signal::SIGKILL).unwrap();
    demo.wait().unwrap();
    assert!(!traces(&lab).is_empty(), "a killed demo cannot clean up");
    wait_for("its child to die and give up the lab", Duration::from_secs(10), || {
        anyhow::ensure!(!registry::is_owned(lab.prefix())?, "it lives");
        Ok(())
    })
    .unwrap();
    let down = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["lab", "down", "--prefix", lab.prefix()])
        .status();
    assert!(down.unwrap().success());
    assert_eq!(traces(&lab), Vec::<String>::new());
}

#[test]
fn an_interrupted_demo_cleans_up_by_itself() {
    needs_root!();
    let lab = Lab::new(&root(), &unique("i"), 3).unwrap();
    let mut demo = demo(lab.prefix());
    wait_for_daemons(&lab);
    kill(Pid::from_raw(i32::try_from(demo.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(traces(&lab), Vec::<String>::new());
}
