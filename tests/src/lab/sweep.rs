//! Takes a lab away, whatever is left of it.
//!
//! Nothing is remembered: processes are found by cgroup and by namespace, mounts by their path,
//! namespaces and cgroups by the prefix in their names. So it works after a crash at any moment,
//! and a second time. The order is processes, mounts, namespaces, cgroups, files: each would keep
//! the next one busy.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CLIENT, Lab, NETNS_DIR, SWITCH, daemon, plain, wait_for};

impl Lab {
    /// Takes away everything that carries the lab's prefix or lies in its folder.
    pub(super) fn sweep(&self) -> Result<()> {
        let netns = owned_names(Path::new(NETNS_DIR), &self.prefix);
        let cgroups = daemon::cgroup_mount()
            .map(|mount| owned_names(&mount, &self.prefix))
            .unwrap_or_default();
        if netns.is_empty() && cgroups.is_empty() && !self.dir.exists() {
            return Ok(());
        }
        ensure!(nix::unistd::geteuid().is_root(), "taking a lab away needs root");
        kill_all(&netns, &cgroups)?;
        for mount in mounts_below(&self.dir)? {
            umount2(&mount, MntFlags::MNT_DETACH)
                .with_context(|| format!("cannot unmount {}", mount.display()))?;
        }
        for path in &netns {
            // What `ip netns del` does; a half-made one is a plain file and no mount.
            let _ = umount2(path, MntFlags::MNT_DETACH);
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        for path in &cgroups {
            wait_for("a cgroup to empty", Duration::from_secs(5), || remove_cgroup(path))?;
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)
                .with_context(|| format!("cannot remove {}", self.dir.display()))?;
        }
        Ok(())
    }
}

/// Entries `<prefix>-n<i>`, `<prefix>-client`, … of a folder, and no others.
fn owned_names(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| is_owned(&entry.file_name().to_string_lossy(), prefix))
        .map(|entry| entry.path())
        .collect()
}

fn is_owned(name: &str, prefix: &str) -> bool {
    let host = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    host.is_some_and(|host| {
        let number = host.strip_prefix('n').unwrap_or_default();
        [CLIENT, SWITCH, plain::TASK].contains(&host)
            || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Kills every process of these cgroups and namespaces, and waits until they are gone.
fn kill_all(netns: &[PathBuf], cgroups: &[PathBuf]) -> Result<()> {
    let inodes: HashSet<u64> = netns
        .iter()
        .filter_map(|path| fs::metadata(path).ok())
        .map(|metadata| metadata.ino())
        .collect();
    wait_for("the lab's processes to end", Duration::from_secs(10), || {
        for cgroup in cgroups {
            // Kernels from 5.14 on end a whole subtree at once, also one that is forking.
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
        let left = processes_in(&inodes, cgroups)?;
        for pid in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if !left.is_empty() {
            bail!("still running: {left:?}");
        }
        Ok(())
    })
}

/// Processes, zombies left out, that are in one of the namespaces or cgroups.
fn processes_in(inodes: &HashSet<u64>, cgroups: &[PathBuf]) -> Result<Vec<i32>> {
    let own = std::process::id();
    let mut found: Vec<i32> = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        if u32::try_from(pid).is_ok_and(|pid| pid == own) {
            continue;
        }
        let inside = fs::metadata(entry.path().join("ns/net"))
            .is_ok_and(|metadata| inodes.contains(&metadata.ino()));
        if inside {
            found.push(pid);
        }
    }
    for cgroup in cgroups {
        found.extend(daemon::processes(cgroup));
    }
    found.retain(|pid| is_alive(*pid));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Whether a process runs; a zombie does not, it only waits for its parent.
pub(super) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
    })
}

/// Mounts at or below a folder, the innermost first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(dir))
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// Removes a cgroup with everything below it.
fn remove_cgroup(path: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_lab_makes_are_taken_away() {
        for name in ["shoal-n1", "shoal-n64", "shoal-client", "shoal-sw", "shoal-task"] {
            assert!(is_owned(name, "shoal"), "{name}");
        }
        for name in ["shoal", "shoal-", "shoal-n", "shoal-nx", "shoal-n1-x", "shoals-n1", "n1"] {
            assert!(!is_owned(name, "shoal"), "{name}");
        }
    }

    #[test]
    fn this_process_lives_and_an_impossible_one_does_not() {
        assert!(is_alive(i32::try_from(std::process::id()).unwrap()));
        assert!(!is_alive(i32::MAX));
    }
}
