//! A kernel in memory.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_routing::{Lower, Plan, TaskLink, TaskPort};

/// What the kernel was asked, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Applied(u64),
    Attached(String),
    Detached(String),
}

#[derive(Debug, Default)]
pub struct Held {
    pub plan: Option<Plan>,
    /// Link and the namespace's inode, by task.
    pub links: BTreeMap<String, (TaskLink, u64)>,
    pub events: Vec<Event>,
    /// How many plans are to fail.
    pub failures: usize,
    /// How many attachments are to fail.
    pub attach_failures: usize,
}

/// The lower half of one node; clones share what is held, as daemons share a kernel.
#[derive(Clone, Debug, Default)]
pub struct Memory(pub Arc<Mutex<Held>>);

#[derive(Debug, thiserror::Error)]
#[error("the kernel said no")]
pub struct No;

impl Lower for Memory {
    type Error = No;

    async fn apply(&mut self, plan: &Plan) -> Result<usize, No> {
        let mut held = self.0.lock();
        if held.failures > 0 {
            held.failures -= 1;
            return Err(No);
        }
        held.plan = Some(plan.clone());
        held.events.push(Event::Applied(plan.index));
        Ok(1)
    }

    async fn attach(&mut self, link: &TaskLink, netns: BorrowedFd<'_>) -> Result<TaskPort, No> {
        let mut held = self.0.lock();
        if held.attach_failures > 0 {
            held.attach_failures -= 1;
            return Err(No);
        }
        let inode = nix::sys::stat::fstat(netns).expect("the namespace is open").st_ino;
        held.events.push(Event::Attached(link.task_id.clone()));
        held.links.insert(link.task_id.clone(), (link.clone(), inode));
        Ok(TaskPort { ifindex: 1, host_mac: [2, 0, 0, 0, 0, 1] })
    }

    async fn detach(&mut self, task_id: &str) -> Result<(), No> {
        let mut held = self.0.lock();
        held.events.push(Event::Detached(task_id.to_owned()));
        held.links.remove(task_id);
        Ok(())
    }

    fn counters(&self) -> Result<BTreeMap<String, (u64, u64)>, No> {
        Ok(BTreeMap::from([("forwarded".to_owned(), (2, 128))]))
    }

    fn choices(&self) -> Vec<(String, String)> {
        vec![("kernel".to_owned(), "memory".to_owned())]
    }
}
