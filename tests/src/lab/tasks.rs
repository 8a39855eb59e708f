//! Finds the tasks that run on a lab's hosts, and what their kernel counted.
//!
//! A task is recognised from outside, by the environment that the agent gives it and the cgroup
//! it runs in: tests must not have to believe the daemon they test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Lab, daemon, net};

/// One running task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// `web.1`, from the task's environment.
    pub name: String,
    /// The task's id, from the same place.
    pub id: String,
    /// The host it runs on.
    pub host: String,
    /// Its first process.
    pub pid: i32,
}

impl Lab {
    /// The tasks that run now, by host and name.
    pub fn tasks(&self) -> Vec<Task> {
        let mut first: BTreeMap<(String, String, String), i32> = BTreeMap::new();
        for host in self.nodes() {
            let Some(cgroup) = self.cgroup(&host) else { continue };
            for pid in daemon::processes(&cgroup) {
                let Some(name) = environment(pid, "SHOAL_TASK_NAME") else { continue };
                let id = environment(pid, "SHOAL_TASK_ID").unwrap_or_default();
                // A task's children carry its environment too: the oldest stands for it.
                let oldest = first.entry((host.clone(), name, id)).or_insert(pid);
                *oldest = pid.min(*oldest);
            }
        }
        first.into_iter().map(|((host, name, id), pid)| Task { name, id, host, pid }).collect()
    }

    /// Kills a task's first process, and with it the task.
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill_task(&self, task: &Task) -> Result<()> {
        kill(Pid::from_raw(task.pid), Signal::SIGKILL)
            .with_context(|| format!("cannot kill {} (process {})", task.name, task.pid))
    }

    /// Image and path of the lab's `shoal` binary in it: [`image`].
    ///
    /// # Errors
    /// The small root cannot be made.
    pub fn image(&self) -> Result<(String, String)> {
        image(self.binary(), &self.dir().join("rootfs"))
    }

    /// Fails if any host or task counted a packet with a bad checksum since it was made.
    ///
    /// # Errors
    /// It did; the text names where and which counter.
    pub fn check_checksums(&self) -> Result<()> {
        let mut places: Vec<(String, PathBuf)> =
            self.hosts().into_iter().map(|host| (host.clone(), self.netns(&host))).collect();
        for task in self.tasks() {
            places.push((task.name, PathBuf::from(format!("/proc/{}/ns/net", task.pid))));
        }
        for (place, netns) in places {
            if !netns.exists() {
                continue; // A task that ended meanwhile.
            }
            let bad = match net::inside(&netns, checksum_errors) {
                Err(_) if !netns.exists() => continue,
                counted => counted??,
            };
            if !bad.is_empty() {
                bail!("{place} saw packets with a bad checksum: {}", bad.join(", "));
            }
        }
        Ok(())
    }
}

/// Image and path of a `shoal` binary in it, for tasks that run the responder.
///
/// The image is the machine's own root, unless the binary lies where every task has an empty file
/// system of its own: then a small root is made at `rootfs` that holds the binary and its libraries.
///
/// # Errors
/// The small root cannot be made.
pub fn image(binary: &Path, rootfs: &Path) -> Result<(String, String)> {
    let hidden = ["/tmp", "/run", "/dev", "/proc", "/sys", "/var/run"];
    if !hidden.iter().any(|folder| binary.starts_with(folder)) {
        return Ok(("rootfs:/".to_owned(), binary.display().to_string()));
    }
    for folder in ["dev", "proc", "sys", "tmp", "run", "etc"] {
        fs::create_dir_all(rootfs.join(folder))?;
    }
    copy_into(binary, &rootfs.join("bin/shoal"))?;
    let libraries = Command::new("ldd").arg(binary).output().context("cannot run ldd")?;
    let libraries = super::checked("ldd", &libraries)?;
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        copy_into(Path::new(path), &rootfs.join(path.trim_start_matches('/')))?;
    }
    Ok((format!("rootfs:{}", rootfs.display()), "/bin/shoal".to_owned()))
}

/// `InCsumErrors` counters that are not zero, in the calling thread's namespace.
fn checksum_errors() -> Result<Vec<String>> {
    // `/proc/net` shows the namespace of the process, `thread-self` that of this thread.
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp").context("cannot read snmp")?;
    let snmp6 = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
    Ok(nonzero_checksum_errors(&snmp, &snmp6))
}

fn nonzero_checksum_errors(snmp: &str, snmp6: &str) -> Vec<String> {
    let mut bad = Vec::new();
    let lines: Vec<&str> = snmp.lines().collect();
    for pair in lines.chunks_exact(2) {
        let mut fields = pair[0].split_whitespace().zip(pair[1].split_whitespace());
        let protocol = fields.next().map_or("", |(name, _)| name.trim_end_matches(':'));
        for (name, value) in fields {
            if name == "InCsumErrors" && value != "0" {
                bad.push(format!("{protocol}{name} {value}"));
            }
        }
    }
    for line in snmp6.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(value)) = (words.next(), words.next())
            && name.ends_with("InCsumErrors")
            && value != "0"
        {
            bad.push(format!("{name} {value}"));
        }
    }
    bad
}

/// Copies a file, following links and making the folders it needs.
fn copy_into(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// A variable of a process's environment.
fn environment(pid: i32, key: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    bytes.split(|byte| *byte == 0).find_map(|pair| {
        let text = String::from_utf8_lossy(pair);
        text.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_error_is_seen_in_every_protocol() {
        let snmp = "Tcp: InSegs InCsumErrors\nTcp: 5 2\nUdp: InCsumErrors\nUdp: 0\n";
        let snmp6 = "Udp6InCsumErrors 3\nIp6InReceives 9\n";
        assert_eq!(
            nonzero_checksum_errors(snmp, snmp6),
            ["TcpInCsumErrors 2", "Udp6InCsumErrors 3"]
        );
    }

    #[test]
    fn no_error_means_an_empty_list() {
        let snmp = "Tcp: InSegs InCsumErrors\nTcp: 5 0\n";
        assert!(nonzero_checksum_errors(snmp, "Udp6InCsumErrors 0\n").is_empty());
    }

    #[test]
    fn the_own_process_is_found_by_its_environment() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(environment(pid, "PATH"), std::env::var("PATH").ok());
    }
}
