//! Finds the leader and asks it: writes, the index that a read must wait for, progress.
//!
//! Every call goes on trying until its time is over, so a caller hardly notices a fail-over. A
//! write is tried again only where it surely was not taken: no connection was made, or the peer
//! said that it does not lead.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::ReadPolicy;
use parking_lot::Mutex;
use shoal_api::leader_client::LeaderClient;
use shoal_api::{
    Caller, ForwardRequest, NodeProgress, ReadIndexRequest, StatusRequest, Write, WriteResult,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic::transport::Channel;

use super::serve::{self, Unserved};
use super::{Shared, status};
use crate::leader::Command;
use crate::{members, network};

/// Between two looks for a leader.
const RETRY: Duration = Duration::from_millis(50);
/// What a leader that is there answers within; a dead one must not take up a read's whole time.
const ANSWER: Duration = Duration::from_secs(1);
/// A leader that was heard within this is worth a call without a new connection: a write that a
/// dead one's connection swallows has no known outcome.
const FRESH: Duration = Duration::from_millis(400);

/// The connection to the leader that was used last: where to, and with which of our certificates.
#[derive(Default)]
pub struct Line(Mutex<Option<(String, u64, Channel)>>);

/// What a linearizable read learns from the leader.
pub struct Caught {
    /// The store holds all up to here.
    pub index: u64,
    /// Raft ids of the managers that the leader reaches.
    pub reachable: BTreeSet<u64>,
}

/// `host:port` of the leader as this manager knows it, and whether it is itself.
pub fn leader(shared: &Shared) -> Option<(u64, String)> {
    let metrics = shared.raft.metrics();
    let now = metrics.borrow_watched();
    let id = now.current_leader?;
    let peer = now.membership_config.membership().get_node(&id)?;
    Some((id, shared.book.addr(id).unwrap_or_else(|| peer.addr.clone())))
}

/// Does a write on the leader.
pub async fn write(shared: &Shared, caller: Caller, write: Write) -> Result<WriteResult, Status> {
    let deadline = Instant::now() + shared.write_timeout;
    loop {
        match timeout_at(deadline, serve::write(shared, caller.clone(), write.clone())).await {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(Unserved::NotHere)) => {}
            Ok(Err(Unserved::Lost)) => return Err(status::unknown_outcome()),
            Ok(Err(Unserved::Refused(refusal))) => return Err(refusal),
            Err(_late) => return Err(unconfirmed(shared)),
        }
        if let Some(mut client) = client(shared, deadline).await {
            let request =
                ForwardRequest { caller: Some(caller.clone()), write: Some(write.clone()) };
            match timeout_at(deadline, client.forward(request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(refusal)) if status::is_not_leader(&refusal) => {}
                Ok(Err(refusal)) if status::wants_new_connection(&refusal) => hang_up(shared),
                Ok(Err(broken)) if status::was_not_sent(&broken) => hang_up(shared),
                // The connection broke: nobody said what became of it.
                Ok(Err(broken)) if broken.source().is_some() => {
                    hang_up(shared);
                    return Err(status::unknown_outcome());
                }
                Ok(Err(refusal)) => return Err(refusal),
                Err(_late) => {
                    hang_up(shared);
                    return Err(unconfirmed(shared));
                }
            }
        }
        pause(shared, deadline).await?;
    }
}

/// Waits until this manager's store holds all that was acknowledged before the call.
pub async fn catch_up(shared: &Shared) -> Result<Caught, Status> {
    let deadline = Instant::now() + shared.read_timeout;
    let caught = loop {
        if let Some(caught) = read_index(shared, deadline).await {
            break caught;
        }
        pause(shared, deadline).await?;
    };
    let mut applied = shared.view.events.applied();
    let reached = timeout_at(deadline, applied.wait_for(|applied| *applied >= caught.index)).await;
    reached.map(drop).map_err(|_late| trouble(shared))?;
    Ok(caught)
}

/// Index that a linearizable read must wait for, if there is a leader that can tell.
async fn read_index(shared: &Shared, deadline: Instant) -> Option<Caught> {
    match leader(shared) {
        Some((id, _)) if id == shared.raft_id => own_read_index(shared, deadline).await,
        Some(_) => {
            let mut client = client(shared, deadline).await?;
            let answer = deadline.min(Instant::now() + ANSWER);
            match timeout_at(answer, client.read_index(ReadIndexRequest {})).await {
                Ok(Ok(response)) => {
                    let response = response.into_inner();
                    let reachable = response.reachable.into_iter().collect();
                    Some(Caught { index: response.index, reachable })
                }
                failed => {
                    keep_or_hang_up(shared, failed.ok().and_then(Result::err));
                    None
                }
            }
        }
        None => None,
    }
}

/// The same, of this manager as the leader: a quorum must confirm that it still leads.
pub async fn own_read_index(shared: &Shared, deadline: Instant) -> Option<Caught> {
    let read = shared.raft.get_read_log_id(ReadPolicy::ReadIndex);
    let (read_log_id, _) = timeout_at(deadline, read).await.ok()?.ok()?;
    let metrics = shared.raft.metrics();
    let reachable = members::reachable(&metrics.borrow_watched(), shared.lease);
    Some(Caught { index: read_log_id.log_id().index, reachable })
}

/// Where every node's kernel stands.
pub async fn progress(shared: &Shared) -> Result<Vec<NodeProgress>, Status> {
    let deadline = Instant::now() + shared.read_timeout;
    loop {
        let (reply, answer) = oneshot::channel();
        if shared.desk.send(Command::Progress { reply }).is_ok() {
            if let Ok(Ok(progress)) = timeout_at(deadline, answer).await {
                return Ok(progress);
            }
        } else if let Some(mut client) = client(shared, deadline).await {
            let answer = deadline.min(Instant::now() + ANSWER);
            match timeout_at(answer, client.status(StatusRequest {})).await {
                Ok(Ok(response)) => return Ok(response.into_inner().nodes),
                failed => keep_or_hang_up(shared, failed.ok().and_then(Result::err)),
            }
        }
        pause(shared, deadline).await?;
    }
}

/// A connection to the leader, when that is another manager and can be reached now.
async fn client(shared: &Shared, deadline: Instant) -> Option<LeaderClient<Channel>> {
    let (id, addr) = leader(shared)?;
    if id == shared.raft_id {
        return None;
    }
    let kept = shared.line.0.lock().clone();
    let generation = shared.credentials.generation();
    let kept = kept.filter(|(to, with, _)| {
        *to == addr && *with == generation && shared.last_heard.within(FRESH)
    });
    let channel = match kept {
        Some((_, _, channel)) => channel,
        None => {
            let connect = network::connect(&shared.credentials, &addr);
            let channel = timeout_at(deadline, connect).await.ok()?.ok()?;
            *shared.line.0.lock() = Some((addr, generation, channel.clone()));
            channel
        }
    };
    Some(LeaderClient::new(channel).max_decoding_message_size(network::MAX_MESSAGE))
}

/// The next call to the leader makes a new connection.
fn hang_up(shared: &Shared) {
    shared.line.0.lock().take();
}

/// An answer came over a connection that works; silence or a transport's failure did not.
fn keep_or_hang_up(shared: &Shared, failure: Option<Status>) {
    let useless =
        |failure: Status| failure.source().is_some() || status::wants_new_connection(&failure);
    if failure.is_none_or(useless) {
        hang_up(shared);
    }
}

async fn pause(shared: &Shared, deadline: Instant) -> Result<(), Status> {
    if Instant::now() + RETRY >= deadline {
        return Err(trouble(shared));
    }
    sleep(RETRY).await;
    Ok(())
}

/// The leader has the write, and it may be stored yet.
fn unconfirmed(shared: &Shared) -> Status {
    shared.disk.borrow().as_deref().map_or_else(status::unconfirmed, status::disk)
}

/// Why nothing came of it, as far as this manager can tell.
fn trouble(shared: &Shared) -> Status {
    shared.disk.borrow().as_deref().map_or_else(status::no_leader, status::disk)
}
