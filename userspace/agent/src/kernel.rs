//! The one owner of the lower half: everything that touches the kernel's tables goes through here,
//! one thing at a time.
//!
//! Assignments become a plan, and the plan is applied; when that fails it is tried again with
//! growing delays, and newer assignments take the failed plan's place. Before the first full set
//! nothing is applied: what an earlier daemon left pinned goes on forwarding untouched. What drifts
//! from the plan afterwards (another program's doing, an interface made anew) is repaired in turn.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use shoal_api::{Assignments, Task};
use shoal_routing::plan::{Gap, parse_mac};
use shoal_routing::{Lower, State, TaskLink};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::backoff::Backoff;

/// Commands that may wait; more senders than that wait themselves.
const QUEUE: usize = 64;
/// First delay before a failed plan is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest delay: an operator who repaired the cause sees the effect soon.
const RETRY_MOST: Duration = Duration::from_secs(5);

/// How often the kernel is compared with the plan: it takes some milliseconds, and what it mends is
/// rare.
const RESYNC: Duration = Duration::from_secs(30);

/// Packets and bytes by reason.
pub type Counters = BTreeMap<String, (u64, u64)>;

/// Why the kernel did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The lower half's own words.
    #[error("{0}")]
    Lower(String),
    /// The task's attachment has no usable address or MAC.
    #[error("attachment {address:?} with MAC {mac:?} cannot be used")]
    Attachment {
        /// The address as given.
        address: String,
        /// The MAC as given.
        mac: String,
    },
    /// The agent has been shut down.
    #[error("the agent has been shut down")]
    Stopped,
}

/// A handle to the owner of the lower half.
#[derive(Clone, Debug)]
pub struct Kernel {
    commands: mpsc::Sender<Command>,
    held: watch::Receiver<u64>,
}

type Answer<T> = oneshot::Sender<Result<T, KernelError>>;

#[derive(Debug)]
enum Command {
    Assign(Arc<Assignments>, oneshot::Sender<Result<(), Gap>>),
    Attach(TaskLink, OwnedFd, Answer<()>),
    Detach(String, Answer<()>),
    Counters(Answer<Counters>),
    Choices(Answer<Vec<(String, String)>>),
    Stop(Answer<()>),
}

impl Kernel {
    /// Gives the lower half to its owner, a task of the current runtime.
    pub(crate) fn start<L: Lower>(lower: L, node_id: String) -> Self {
        Self::start_with(lower, node_id, RESYNC)
    }

    fn start_with<L: Lower>(lower: L, node_id: String, resync_every: Duration) -> Self {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (held, held_seen) = watch::channel(0);
        let owner = Owner {
            lower,
            node_id,
            state: State::default(),
            held,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MOST),
            retry_at: None,
            resync_at: None,
            resync_every,
        };
        tokio::spawn(owner.run(inbox));
        Self { commands, held: held_seen }
    }

    /// Raft index of the plan that the kernel holds; 0 before the first one.
    #[must_use]
    pub fn held_index(&self) -> u64 {
        *self.held.borrow()
    }

    /// Changes of [`held_index`](Self::held_index).
    pub(crate) fn held(&self) -> watch::Receiver<u64> {
        self.held.clone()
    }

    /// What the data plane counted.
    ///
    /// # Errors
    /// When the counters cannot be read, or the agent was shut down.
    pub async fn counters(&self) -> Result<Counters, KernelError> {
        self.ask(Command::Counters).await
    }

    /// What the data plane chose at load.
    ///
    /// # Errors
    /// When the agent was shut down.
    pub async fn choices(&self) -> Result<Vec<(String, String)>, KernelError> {
        self.ask(Command::Choices).await
    }

    /// Takes assignments and returns after the first attempt to apply them. `Ok` too when that
    /// failed: it is tried again until newer ones replace them.
    pub(crate) async fn assign(&self, assignments: Arc<Assignments>) -> Result<(), Gap> {
        let (done, answer) = oneshot::channel();
        // Without an owner there is no session that could care.
        if self.commands.send(Command::Assign(assignments, done)).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// Gives a task its network.
    pub(crate) async fn attach(&self, link: TaskLink, netns: OwnedFd) -> Result<(), KernelError> {
        self.ask(|done| Command::Attach(link, netns, done)).await
    }

    /// Takes a task's network away.
    pub(crate) async fn detach(&self, task_id: String) -> Result<(), KernelError> {
        self.ask(|done| Command::Detach(task_id, done)).await
    }

    /// Lets the lower half go once everything before is done.
    pub(crate) async fn stop(&self) {
        // An owner that is gone already is what is asked for.
        let _ = self.ask(Command::Stop).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, KernelError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| KernelError::Stopped)?;
        answer.await.map_err(|_| KernelError::Stopped)?
    }
}

/// Who holds the lower half.
struct Owner<L> {
    lower: L,
    node_id: String,
    state: State,
    held: watch::Sender<u64>,
    backoff: Backoff,
    /// When a failed plan is tried again.
    retry_at: Option<Instant>,
    /// When the kernel is compared with the plan next; not before a plan was applied.
    resync_at: Option<Instant>,
    resync_every: Duration,
}

impl<L: Lower> Owner<L> {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        loop {
            let (retry_at, resync_at) = (self.retry_at, self.resync_at);
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Stop(done)) => {
                        drop(self.lower);
                        // Nobody may be waiting any more.
                        let _ = done.send(Ok(()));
                        return;
                    }
                    Some(command) => self.serve(command).await,
                    None => return,
                },
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.apply().await;
                }
                // Not while a newer plan is tried again: the old one is not to be repaired.
                () = sleep_until(resync_at.unwrap_or_else(Instant::now)),
                    if resync_at.is_some() && retry_at.is_none() =>
                {
                    self.resync().await;
                }
            }
        }
    }

    /// Does one thing. Who asked may have gone: then the answer is dropped.
    async fn serve(&mut self, command: Command) {
        match command {
            Command::Assign(assignments, done) => {
                let taken = self.state.apply(&assignments);
                if taken.is_ok() {
                    self.backoff.reset();
                    self.apply().await;
                }
                let _ = done.send(taken);
            }
            Command::Attach(link, netns, done) => {
                let result = self.lower.attach(&link, netns.as_fd()).await;
                let _ = done.send(result.map(drop).map_err(lower_error));
            }
            Command::Detach(task_id, done) => {
                let result = self.lower.detach(&task_id).await;
                let _ = done.send(result.map_err(lower_error));
            }
            Command::Counters(done) => {
                let _ = done.send(self.lower.counters().map_err(lower_error));
            }
            Command::Choices(done) => {
                let _ = done.send(Ok(self.lower.choices()));
            }
            Command::Stop(_) => unreachable!("taken by the loop"),
        }
    }

    async fn apply(&mut self) {
        let plan = self.state.plan(&self.node_id);
        for problem in self.state.problems() {
            tracing::warn!(%problem, index = plan.index, "an assignment cannot be used");
        }
        match self.lower.apply(&plan).await {
            Ok(steps) => {
                tracing::debug!(index = plan.index, steps, "plan applied");
                self.retry_at = None;
                self.resync_at.get_or_insert_with(|| Instant::now() + self.resync_every);
                self.backoff.reset();
                self.held.send_replace(plan.index);
            }
            Err(error) => {
                let delay = self.backoff.next_delay();
                tracing::warn!(
                    index = plan.index, %error, ?delay,
                    "plan not applied; it is tried again"
                );
                self.retry_at = Some(Instant::now() + delay);
            }
        }
    }

    /// Repairs what differs from the plan that is held.
    async fn resync(&mut self) {
        match self.lower.resync().await {
            Ok(0) => {}
            Ok(steps) => tracing::warn!(steps, "the kernel had drifted from the plan"),
            Err(error) => {
                tracing::warn!(error = %lower_error(error), "the kernel cannot be compared");
            }
        }
        self.resync_at = Some(Instant::now() + self.resync_every);
    }
}

fn lower_error(error: impl std::error::Error) -> KernelError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    KernelError::Lower(text)
}

/// The link that a task's attachment asks for; `None` for a task without one.
pub(crate) fn task_link(task: &Task) -> Result<Option<TaskLink>, KernelError> {
    let Some(attachment) = task.attachments.first() else { return Ok(None) };
    let network = attachment.address.parse::<IpNetwork>().ok();
    let link = network.zip(parse_mac(&attachment.mac)).and_then(|(network, mac)| {
        Some(TaskLink {
            task_id: task.id.clone(),
            address: network.ip(),
            prefix: network.prefix(),
            gateway: first_address(network)?,
            mac,
        })
    });
    link.map(Some).ok_or_else(|| KernelError::Attachment {
        address: attachment.address.clone(),
        mac: attachment.mac.clone(),
    })
}

/// A network's gateway is its first usable address.
fn first_address(network: IpNetwork) -> Option<IpAddr> {
    match network.network() {
        IpAddr::V4(base) => {
            Some(u32::from(base).checked_add(1)?).map(|next| IpAddr::V4(next.into()))
        }
        IpAddr::V6(base) => {
            Some(u128::from(base).checked_add(1)?).map(|next| IpAddr::V6(next.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use shoal_api::Attachment;
    use shoal_routing::{Plan, TaskPort};

    use super::*;

    fn link(address: &str, mac: &str) -> Result<Option<TaskLink>, KernelError> {
        let attachment =
            Attachment { address: address.into(), mac: mac.into(), ..Attachment::default() };
        task_link(&Task { id: "t".into(), attachments: vec![attachment], ..Task::default() })
    }

    #[test]
    fn an_attachment_becomes_a_link_whose_gateway_is_the_first_address() {
        let link = link("10.0.0.5/24", "02:42:0a:00:00:05").unwrap().unwrap();
        assert_eq!(link.address, IpAddr::from([10, 0, 0, 5]));
        assert_eq!((link.prefix, link.gateway), (24, IpAddr::from([10, 0, 0, 1])));
        assert_eq!(link.mac, [2, 0x42, 10, 0, 0, 5]);
        assert_eq!(task_link(&Task::default()), Ok(None));
    }

    #[test]
    fn a_damaged_attachment_is_refused_with_its_words() {
        assert_eq!(
            link("10.0.0/24", "02:42:0a:00:00:05").unwrap_err().to_string(),
            "attachment \"10.0.0/24\" with MAC \"02:42:0a:00:00:05\" cannot be used"
        );
        assert!(link("10.0.0.5/24", "").is_err());
    }

    /// A kernel that only counts how often it was asked to repair itself.
    struct Drifting(watch::Sender<usize>);

    impl Lower for Drifting {
        type Error = std::convert::Infallible;

        async fn apply(&mut self, _: &Plan) -> Result<usize, Self::Error> {
            Ok(0)
        }

        async fn resync(&mut self) -> Result<usize, Self::Error> {
            self.0.send_modify(|asked| *asked += 1);
            Ok(1)
        }

        async fn attach(
            &mut self,
            _: &TaskLink,
            _: BorrowedFd<'_>,
        ) -> Result<TaskPort, Self::Error> {
            Ok(TaskPort { ifindex: 1, host_mac: [0; 6] })
        }

        async fn detach(&mut self, _: &str) -> Result<(), Self::Error> {
            Ok(())
        }

        fn counters(&self) -> Result<Counters, Self::Error> {
            Ok(Counters::new())
        }

        fn choices(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn a_kernel_that_holds_a_plan_is_repaired_in_turn_and_not_before() {
        let (asked, mut seen) = watch::channel(0);
        let every = Duration::from_millis(20);
        let kernel = Kernel::start_with(Drifting(asked), "n1".into(), every);
        // Longer than some turns, and nothing is held.
        tokio::time::timeout(every * 5, seen.changed()).await.unwrap_err();
        let start = Instant::now();
        kernel.assign(Arc::new(Assignments::default())).await.unwrap();
        seen.wait_for(|asked| *asked == 3).await.unwrap();
        assert!(start.elapsed() >= every * 3, "{:?}", start.elapsed());
    }
}
