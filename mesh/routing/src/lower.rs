//! The lower half, as the upper half sees it: what can be asked of one node's kernel.
//!
//! Implemented by `userspace/dataplane` with maps and links, and by tests with plain collections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use shoal_datapath::abi::Mac;

use crate::plan::Plan;

/// What a task's attachment asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskLink {
    /// Id of the task: names the veth and finds it again after a restart.
    pub task_id: String,
    /// The task's address on the ingress network.
    pub address: IpAddr,
    /// Prefix length of that network.
    pub prefix: u8,
    /// Where the task sends everything: the network's gateway.
    pub gateway: IpAddr,
    /// The task's own MAC, which names it in the mesh.
    pub mac: Mac,
}

/// A task's attachment as it stands in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskPort {
    /// Interface index of the host's side.
    pub ifindex: u32,
    /// MAC of the host's side.
    pub host_mac: Mac,
}

/// One node's kernel.
///
/// All calls are idempotent: a repeated one finds its work done. Errors name the map, interface or
/// link that failed; the caller reports them and tries again with the next plan.
pub trait Lower: Send + 'static {
    /// Why the kernel could not be made equal to what was asked.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes the kernel equal to `plan`, in the safe order of [`diff`](crate::diff::diff), starting
    /// from what the kernel really holds. Returns how many steps that took.
    fn apply(&mut self, plan: &Plan) -> impl Future<Output = Result<usize, Self::Error>> + Send;

    /// Compares what the kernel really holds, and the host's interfaces and addresses, with the last
    /// plan, and repairs what differs. Returns how many steps that took. For a call every half
    /// minute or so; one that holds nothing has nothing to repair.
    fn resync(&mut self) -> impl Future<Output = Result<usize, Self::Error>> + Send {
        async { Ok(0) }
    }

    /// Gives a task its interface `eth0` inside `netns`: veth, address, default route, gateway's
    /// MAC, loopback up, MTU, and our program on the host's side.
    fn attach(
        &mut self,
        link: &TaskLink,
        netns: BorrowedFd<'_>,
    ) -> impl Future<Output = Result<TaskPort, Self::Error>> + Send;

    /// Takes a task's interface away, also when its namespace is gone already.
    fn detach(&mut self, task_id: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What the data plane counted, by reason, as (packets, bytes).
    ///
    /// # Errors
    /// A counter could not be read.
    fn counters(&self) -> Result<BTreeMap<String, (u64, u64)>, Self::Error>;

    /// What was probed and chosen at load: `xdp=native`, `tc=tcx`, …
    fn choices(&self) -> Vec<(String, String)>;
}
