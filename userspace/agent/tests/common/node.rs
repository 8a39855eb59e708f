//! One node: a state folder, a cgroup and a kernel that outlive its agents.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_agent::{Agent, Config};
use shoal_api::{
    Attachment, ContainerSpec, NodeDescription, NodeRole, Task, TaskSpec, TaskState, TaskStatus,
};

use super::lower::Memory;
use super::pki;

/// Where the machine has its version 2 tree.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find(|fields| fields[2] == "cgroup2").map(|fields| PathBuf::from(fields[1]))
}

/// Removes all that its agents started.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub cgroup: Option<PathBuf>,
    pub kernel: Memory,
}

impl Node {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("shoal-agent-test-{}-{number}", std::process::id());
        Self {
            dir: tempfile::tempdir().unwrap(),
            cgroup: cgroup2().map(|tree| tree.join(name)),
            kernel: Memory::default(),
        }
    }

    /// Starts an agent, the first one or the next.
    pub fn agent(&self, managers: &[&str]) -> Agent {
        Agent::start(self.config(managers), self.kernel.clone()).unwrap()
    }

    pub fn config(&self, managers: &[&str]) -> Config {
        Config {
            node_id: "node1".into(),
            state_dir: self.dir.path().join("state"),
            managers: managers.iter().map(|&addr| addr.to_owned()).collect(),
            description: NodeDescription { hostname: "n1".into(), ..NodeDescription::default() },
            credentials: pki::credentials("node1", NodeRole::Worker),
            addr: "192.0.2.1:2377".into(),
            instance: "i1".into(),
            data_path_addr: "192.0.2.1".into(),
            cgroup_root: self.cgroup.clone(),
            shim_exe: env!("CARGO_BIN_EXE_shoal-shim").into(),
        }
    }

    pub fn task_dir(&self, id: &str) -> PathBuf {
        self.dir.path().join("state/tasks").join(id)
    }

    pub fn output(&self, id: &str) -> String {
        fs::read_to_string(self.task_dir(id).join("output.log")).unwrap_or_default()
    }

    pub fn task_cgroup(&self, id: &str) -> Option<PathBuf> {
        self.cgroup.as_ref().map(|root| root.join(id))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // All shims and tasks of this node, and nothing else, are in here.
        let Some(root) = self.cgroup.clone().filter(|root| root.exists()) else { return };
        let _ = fs::write(root.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while remove_tree(&root).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_tree(&path)?;
        }
    }
    fs::remove_dir(cgroup)
}

/// A task of the host's own root that runs a shell script.
pub fn script(id: &str, script: &str) -> Task {
    task(id, "rootfs:/", &["/bin/sh", "-c", script])
}

pub fn task(id: &str, image: &str, argv: &[&str]) -> Task {
    let container = ContainerSpec {
        image: image.into(),
        command: argv.iter().map(|&arg| arg.to_owned()).collect(),
        env: vec!["GREETING=hello".into()],
        stop_grace_period_ns: Some(300_000_000),
        ..ContainerSpec::default()
    };
    Task {
        id: id.into(),
        spec: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
        service_name: "web".into(),
        slot: 1,
        node_id: "node1".into(),
        status: Some(TaskStatus { state: TaskState::Assigned.into(), ..TaskStatus::default() }),
        desired_state: TaskState::Running.into(),
        attachments: vec![Attachment {
            network_id: "net".into(),
            address: "10.0.0.5/24".into(),
            mac: "02:42:0a:00:00:05".into(),
            backend: 5,
        }],
        ..Task::default()
    }
}

/// Signals a process that a test started.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

pub fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended, though nobody has waited for it yet.
    !stat.is_empty() && !stat.contains(") Z ")
}
