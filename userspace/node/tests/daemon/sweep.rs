//! Takes away what an earlier run of these tests left in the kernel and on the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Begins every name that these tests give in the kernel; the process's id follows.
pub const PREFIX: &str = "shn";

/// Where cgroup version 2 is mounted.
pub fn cgroup2() -> Option<PathBuf> {
    mounts().find(|(_, kind)| kind == "cgroup2").map(|(mount, _)| mount)
}

/// Every mount of this machine and its kind.
fn mounts() -> impl Iterator<Item = (PathBuf, String)> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some((PathBuf::from(fields.next()?), fields.next()?.to_owned()))
    };
    mounts.lines().filter_map(parse).collect::<Vec<_>>().into_iter()
}

/// Whether a name is one that a run of these tests gave and that run is gone.
fn is_left_over(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('x'));
    pid.and_then(|(pid, _)| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Takes away what a run that was killed, as by a time-out, could not.
pub fn sweep() {
    let entries = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| is_left_over(&entry.file_name().to_string_lossy()))
    };
    let networks: Vec<_> =
        entries(Path::new("/run/netns")).map(|entry| entry.file_name()).collect();
    for network in &networks {
        let pids = Command::new("ip").args(["netns", "pids"]).arg(network).output();
        let pids = pids.map(|output| output.stdout).unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).split_whitespace() {
            let _ = kill(Pid::from_raw(pid.parse().expect("a pid")), Signal::SIGKILL);
        }
    }
    for entry in cgroup2().iter().flat_map(|mount| entries(mount)) {
        remove_cgroups(&entry.path());
    }
    let temporary = std::env::temp_dir();
    for (mount, _) in mounts() {
        let below = mount.strip_prefix(&temporary).ok();
        let first = below.and_then(|path| path.components().next());
        if first.is_some_and(|name| is_left_over(&name.as_os_str().to_string_lossy())) {
            let _ = nix::mount::umount(&mount);
        }
    }
    for entry in entries(&temporary) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
    for network in &networks {
        let _ = Command::new("ip").args(["netns", "del"]).arg(network).status();
    }
}

/// Kills what is left in a cgroup and removes it with those below it.
pub fn remove_cgroups(root: &Path) {
    let Ok(entries) = std::fs::read_dir(root) else { return };
    let _ = std::fs::write(root.join("cgroup.kill"), "1");
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    // The kernel lets go of a cgroup a moment after its last process.
    let start = Instant::now();
    while std::fs::remove_dir(root).is_err() && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
}
