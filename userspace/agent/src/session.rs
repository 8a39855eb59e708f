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
use shoal_transport::{Credentials, Dial, DialError};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::backoff::Backoff;
use crate::kernel::Kernel;
use crate::managers::Managers;
use crate::news::News;
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
/// Delays between tries while the managers refuse this node: it was removed, or runs twice. That is
/// for a person to mend, and one who does sees the effect soon.
const REFUSED_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How long a manager that was found dead is passed over, also when others still name it the
/// leader: about an election. Not for ever: the link may have been cut, and it still leads.
const SHUNNED: Duration = Duration::from_secs(2);
/// Followers in a row that may name another leader before the agent waits: managers that are
/// electing may point at each other.
const REDIRECTS: u32 = 3;
/// Between heartbeats, whatever a manager says: no node is to flood it.
const SHORTEST: Duration = Duration::from_millis(10);
/// A complete set for tens of thousands of backends; gRPC's own limit is 4 MiB.
const MESSAGE_BYTES: usize = 64 << 20;

/// What a session needs.
pub(crate) struct Session {
    pub(crate) request: SessionRequest,
    pub(crate) credentials: Credentials,
    pub(crate) news: News,
    pub(crate) managers: Managers,
    pub(crate) worker: Worker,
    pub(crate) kernel: Kernel,
    pub(crate) reporter: Reporter,
}

/// Why a session ended, or did not begin.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Unreachable(#[from] DialError),
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
    /// Keeps a session open until the tasks of this node are to be removed, and removes them then.
    pub(crate) async fn run(mut self, remove: oneshot::Receiver<()>) {
        let removed = tokio::select! {
            removed = remove => removed,
            never = self.attend_all() => match never {},
        };
        // Nobody may ask for it any more; then this task is about to be ended.
        if removed.is_ok() {
            self.worker.remove_all().await;
        }
    }

    async fn attend_all(&mut self) -> std::convert::Infallible {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut refused = Backoff::new(REFUSED_RETRY.0, REFUSED_RETRY.1);
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
                refused.reset();
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
                Ended::Refused(status) if status.code() == Code::PermissionDenied => {
                    self.news.refuse(status.message());
                    redirects = 0;
                    sleep(refused.next_delay()).await;
                    continue;
                }
                // The connection has outlived a certificate; all else is well there.
                Ended::Refused(status) if status.code() == Code::Unauthenticated => {
                    self.managers.prefer(addr);
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
        let mut client = connect(&self.credentials, addr).await?;
        let opened = timeout(OPEN, client.session(self.request.clone())).await;
        let mut stream = opened.map_err(|_| Ended::Silent)?.map_err(refused)?.into_inner();
        let first = timeout(OPEN, stream.message()).await.map_err(|_| Ended::Silent)?;
        let first = first.map_err(refused)?.ok_or(Ended::Closed)?;
        let Some(Message::Start(start)) = first.message else { return Err(Ended::NoStart) };
        tracing::info!(%addr, session.id = %start.session_id, "session open");

        let (credentials, reporter) = (self.credentials.clone(), self.reporter.clone());
        let beats = beat(client.clone(), &start, self.kernel.held(), &credentials);
        let reports = report(client, &start, &reporter);
        let assignments = self.receive(stream, served);
        let ended = tokio::select! {
            ended = beats => ended,
            ended = reports => ended,
            ended = assignments => ended,
        };
        tracing::info!(%addr, session.id = %start.session_id, %ended, "session over");
        Err(ended)
    }

    /// Takes what the manager sends, in its order.
    async fn receive(&mut self, mut stream: Streaming<SessionMessage>, served: &mut bool) -> Ended {
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
                    if let Err(gap) = self.kernel.assign(Arc::clone(&assignments)).await {
                        return gap.into();
                    }
                    self.worker.assign(&assignments);
                    if !*served {
                        *served = true;
                        self.news.welcome();
                    }
                }
                Some(Message::Managers(list)) => {
                    self.managers.update(&list.addrs);
                    self.news.managers.send_replace(self.managers.all());
                }
                Some(Message::Standing(standing)) => self.news.stand(standing),
                // A newer manager may say more than we know.
                Some(Message::Start(_)) | None => {}
            }
        }
    }
}

async fn connect(
    credentials: &Credentials,
    addr: &str,
) -> Result<DispatcherClient<Channel>, DialError> {
    let dial = Dial {
        connect_timeout: ANSWER,
        handshake_timeout: ANSWER,
        keepalive_interval: PROBE,
        keepalive_timeout: ANSWER,
        keepalive_while_idle: true,
    };
    let channel = shoal_transport::connect(credentials, addr, &dial).await?;
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

/// Says every period that this node lives, and at once that its kernel or its certificate is
/// another.
async fn beat(
    mut client: DispatcherClient<Channel>,
    start: &SessionStart,
    mut held: watch::Receiver<u64>,
    credentials: &Credentials,
) -> Ended {
    let mut period = start.heartbeat_period_ns;
    let mut ticks = every(period);
    let mut certificates = credentials.changes();
    let mut missed = 0;
    loop {
        let changed = tokio::select! {
            _ = ticks.tick() => Ok(()),
            changed = held.changed() => changed,
            changed = certificates.changed() => changed,
        };
        if changed.is_err() {
            return Ended::Closed;
        }
        ticks.reset();
        let request = HeartbeatRequest {
            session_id: start.session_id.clone(),
            held_index: *held.borrow_and_update(),
            issuer_digest: credentials.issuer_digest(),
        };
        match answer(client.heartbeat(request)).await {
            Ok(Ok(told)) => {
                missed = 0;
                // None is told by a manager that does not know how.
                let told = told.into_inner().heartbeat_period_ns;
                if told != 0 && told != period {
                    period = told;
                    ticks = every(period);
                    ticks.reset();
                }
            }
            Ok(Err(status)) => return refused(status),
            Err(_) => missed += 1,
        }
        if missed == MISSED {
            return Ended::Silent;
        }
    }
}

/// Ticks, the first one at once.
fn every(period_ns: u64) -> Interval {
    let mut ticks = interval(Duration::from_nanos(period_ns).max(SHORTEST));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
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
