//! The node's session with the managers, for as long as the agent lives.
//!
//! One session at a time: a stream of assignments down, heartbeats and task statuses up. Whatever
//! breaks it, the next manager is tried, and the new session starts with the complete set. A
//! follower names the leader. Without any manager tasks run and packets flow as before.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::dispatcher_client::DispatcherClient;
use shoal_api::session_message::Message;
use shoal_api::{
    HeartbeatRequest, SessionMessage, SessionRequest, SessionStart, UpdateTaskStatusRequest,
};
use shoal_routing::plan::Gap;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::backoff::Backoff;
use crate::kernel::Kernel;
use crate::managers::Managers;
use crate::reporter::Reporter;
use crate::worker::Worker;

/// Metadata key under which a follower names the leader.
const LEADER: &str = "shoal-leader";
/// How long a manager may take to answer. A node counts as down after three heartbeats of 1 s:
/// this leaves time to find another manager.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a session may take to open: the leader commits the node's arrival first.
const OPEN: Duration = Duration::from_secs(3);
/// Unanswered calls of one kind before the session is given up. Probes find a dead manager before
/// that; this is for one that lives and does not get to its work.
const MISSED: u32 = 3;
/// A silent connection is probed this often, and given up after [`ANSWER`] without a reply.
const PROBE: Duration = Duration::from_millis(500);
/// Delays between tries to find a manager. A new leader waits three seconds for its nodes: several
/// tries must fit in that.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// How long a manager that was found dead is passed over, also when others still name it the
/// leader: about an election. Not for ever: the link may have been cut, and it still leads.
const SHUNNED: Duration = Duration::from_secs(2);
/// Followers in a row that may name another leader before the agent waits: managers that are
/// electing may point at each other.
const REDIRECTS: u32 = 3;
/// A complete set for tens of thousands of backends; gRPC's own limit is 4 MiB.
const MESSAGE_BYTES: usize = 64 << 20;

/// What a session needs.
pub(crate) struct Session {
    pub(crate) request: SessionRequest,
    pub(crate) managers: Managers,
    pub(crate) worker: Worker,
    pub(crate) kernel: Kernel,
    pub(crate) reporter: Reporter,
}

/// Why a session ended, or did not begin.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot be reached: {0}")]
    Unreachable(tonic::transport::Error),
    #[error("is not an address: {0}")]
    Address(tonic::transport::Error),
    #[error("is not the leader")]
    Redirected(String),
    #[error("refused: {0}")]
    Refused(Box<Status>),
    #[error("connection lost: {0}")]
    Broken(Box<Status>),
    #[error("does not answer")]
    Silent,
    #[error("ended the session")]
    Closed,
    #[error("speaks another protocol: the session began with no start")]
    NoStart,
    #[error("lost assignments: {0}")]
    Gap(#[from] Gap),
}

impl Session {
    /// Keeps a session open, for ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut redirects = 0;
        // Found dead last, and when: not tried in turn, and not because a follower still names it.
        let mut dead: Option<(String, Instant)> = None;
        loop {
            dead = dead.filter(|(_, since)| since.elapsed() < SHUNNED);
            let shunned = dead.as_ref().map(|(addr, _)| addr.as_str());
            let Some(addr) = self.managers.next(shunned) else {
                tracing::warn!("no manager is known");
                sleep(backoff.next_delay()).await;
                continue;
            };
            let mut served = false;
            let ended = self.attend(&addr, &mut served).await;
            if served {
                backoff.reset();
                redirects = 0;
            }
            tracing::debug!(%addr, %ended, "no session");
            match ended {
                Ended::Redirected(leader)
                    if redirects < REDIRECTS && shunned != Some(leader.as_str()) =>
                {
                    redirects += 1;
                    self.managers.prefer(leader);
                    continue;
                }
                Ended::Unreachable(_) | Ended::Silent | Ended::Broken(_) => {
                    dead = Some((addr, Instant::now()));
                }
                _ => {}
            }
            redirects = 0;
            sleep(backoff.next_delay()).await;
        }
    }

    /// One session with one manager. `served` tells whether assignments arrived.
    async fn attend(&mut self, addr: &str, served: &mut bool) -> Ended {
        match self.try_attend(addr, served).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn try_attend(
        &mut self,
        addr: &str,
        served: &mut bool,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut client = connect(addr).await?;
        let opened = timeout(OPEN, client.session(self.request.clone())).await;
        let mut stream = opened.map_err(|_| Ended::Silent)?.map_err(refused)?.into_inner();
        let first = timeout(OPEN, stream.message()).await.map_err(|_| Ended::Silent)?;
        let first = first.map_err(refused)?.ok_or(Ended::Closed)?;
        let Some(Message::Start(start)) = first.message else { return Err(Ended::NoStart) };
        tracing::info!(%addr, session.id = %start.session_id, "session open");

        let held = self.kernel.held();
        let beats = beat(client.clone(), &start, held);
        let reports = report(client, &start, &self.reporter);
        let assignments =
            receive(stream, &mut self.managers, &mut self.worker, &self.kernel, served);
        let ended = tokio::select! {
            ended = beats => ended,
            ended = reports => ended,
            ended = assignments => ended,
        };
        tracing::info!(%addr, session.id = %start.session_id, %ended, "session over");
        Err(ended)
    }
}

async fn connect(addr: &str) -> Result<DispatcherClient<Channel>, Ended> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(Ended::Address)?
        .connect_timeout(ANSWER)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PROBE)
        .keep_alive_timeout(ANSWER)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(Ended::Unreachable)?;
    Ok(DispatcherClient::new(channel).max_decoding_message_size(MESSAGE_BYTES))
}

/// Gives a call its time.
async fn answer<T>(call: impl Future<Output = T>) -> Result<T, Ended> {
    timeout(ANSWER, call).await.map_err(|_| Ended::Silent)
}

fn refused(status: Status) -> Ended {
    let leader = status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok());
    match leader {
        Some(leader) if status.code() == Code::FailedPrecondition && !leader.is_empty() => {
            Ended::Redirected(leader.to_owned())
        }
        // What the manager said has no cause on this side.
        _ if status.source().is_some() => Ended::Broken(Box::new(status)),
        _ => Ended::Refused(Box::new(status)),
    }
}

/// Takes what the manager sends, in its order.
async fn receive(
    mut stream: Streaming<SessionMessage>,
    managers: &mut Managers,
    worker: &mut Worker,
    kernel: &Kernel,
    served: &mut bool,
) -> Ended {
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message.message,
            Ok(None) => return Ended::Closed,
            Err(status) => return refused(status),
        };
        match message {
            Some(Message::Assignments(assignments)) => {
                let assignments = Arc::new(assignments);
                // Tables first: a task that is to stop has left the rings when it hears of it.
                if let Err(gap) = kernel.assign(Arc::clone(&assignments)).await {
                    return gap.into();
                }
                worker.assign(&assignments);
                *served = true;
            }
            Some(Message::Managers(list)) => managers.update(&list.addrs),
            // A newer manager may say more than we know.
            Some(Message::Start(_) | Message::Standing(_)) | None => {}
        }
    }
}

/// Says every period that this node lives, and at once that its kernel holds more.
async fn beat(
    mut client: DispatcherClient<Channel>,
    start: &SessionStart,
    mut held: tokio::sync::watch::Receiver<u64>,
) -> Ended {
    let period = Duration::from_nanos(start.heartbeat_period_ns).max(Duration::from_millis(10));
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missed = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = held.changed() => {
                if changed.is_err() {
                    return Ended::Closed;
                }
                ticks.reset();
            }
        }
        let held_index = *held.borrow_and_update();
        let request = HeartbeatRequest { session_id: start.session_id.clone(), held_index };
        match answer(client.heartbeat(request)).await {
            Ok(Ok(_)) => missed = 0,
            Ok(Err(status)) => return refused(status),
            Err(_) => missed += 1,
        }
        if missed == MISSED {
            return Ended::Silent;
        }
    }
}

/// Says how the tasks are, until it is acknowledged.
async fn report(
    mut client: DispatcherClient<Channel>,
    start: &SessionStart,
    reporter: &Reporter,
) -> Ended {
    reporter.start_over();
    let mut missed = 0;
    loop {
        let updates = reporter.batch().await;
        let request = UpdateTaskStatusRequest {
            session_id: start.session_id.clone(),
            updates: updates.clone(),
        };
        match answer(client.update_task_status(request)).await {
            Ok(Ok(_)) => {
                missed = 0;
                reporter.acknowledge(&updates);
            }
            Ok(Err(status)) => return refused(status),
            Err(_) => missed += 1,
        }
        if missed == MISSED {
            return Ended::Silent;
        }
    }
}
