//! Finds the leader and asks it: writes, the index that a read must wait for, progress.
//!
//! Every call goes on trying until its time is over, so a caller hardly notices a fail-over. A
//! write is tried again only where it surely was not taken: no connection was made, or the peer
//! said that it does not lead.

use std::error::Error;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::ReadPolicy;
use shoal_api::leader_client::LeaderClient;
use shoal_api::{
    Caller, ForwardRequest, NodeProgress, ReadIndexRequest, StatusRequest, Write, WriteResult,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic::transport::Channel;

use super::{Shared, status};
use crate::leader::Command;
use crate::network;

/// Between two looks for a leader.
const RETRY: Duration = Duration::from_millis(50);
/// What a leader that is there answers within; a dead one must not take up a read's whole time.
const ANSWER: Duration = Duration::from_secs(1);

/// `host:port` of the leader as this manager knows it, and whether it is itself.
pub fn leader(shared: &Shared) -> Option<(u64, String)> {
    let metrics = shared.raft.metrics();
    let now = metrics.borrow_watched();
    let id = now.current_leader?;
    let peer = now.membership_config.membership().get_node(&id)?;
    Some((id, peer.addr.clone()))
}

/// Does a write on the leader.
pub async fn write(shared: &Shared, caller: Caller, write: Write) -> Result<WriteResult, Status> {
    let deadline = Instant::now() + shared.write_timeout;
    loop {
        let (reply, answer) = oneshot::channel();
        let command = Command::Write { caller: caller.clone(), write: write.clone(), reply };
        if shared.desk.send(command).is_ok() {
            return match timeout_at(deadline, answer).await {
                Ok(Ok(Ok(result))) => Ok(result),
                Ok(Ok(Err(refusal))) => Err(status::refused(&refusal)),
                Ok(Err(_dropped)) => Err(status::unknown_outcome()),
                Err(_late) => Err(unconfirmed(shared)),
            };
        }
        if let Some(mut client) = client(shared, deadline).await {
            let request =
                ForwardRequest { caller: Some(caller.clone()), write: Some(write.clone()) };
            match timeout_at(deadline, client.forward(request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(refusal)) if status::is_not_leader(&refusal) => {}
                // The connection broke: nobody said what became of it.
                Ok(Err(broken)) if broken.source().is_some() => {
                    return Err(status::unknown_outcome());
                }
                Ok(Err(refusal)) => return Err(refusal),
                Err(_late) => return Err(unconfirmed(shared)),
            }
        }
        pause(shared, deadline).await?;
    }
}

/// Waits until this manager's store holds all that was acknowledged before the call.
pub async fn catch_up(shared: &Shared) -> Result<(), Status> {
    let deadline = Instant::now() + shared.read_timeout;
    let index = loop {
        if let Some(index) = read_index(shared, deadline).await {
            break index;
        }
        pause(shared, deadline).await?;
    };
    let mut applied = shared.view.events.applied();
    let reached = timeout_at(deadline, applied.wait_for(|applied| *applied >= index));
    reached.await.map(drop).map_err(|_late| trouble(shared))
}

/// Index that a linearizable read must wait for, if there is a leader that can tell.
async fn read_index(shared: &Shared, deadline: Instant) -> Option<u64> {
    match leader(shared) {
        Some((id, _)) if id == shared.raft_id => own_read_index(shared, deadline).await,
        Some(_) => {
            let mut client = client(shared, deadline).await?;
            let answer = deadline.min(Instant::now() + ANSWER);
            let response = timeout_at(answer, client.read_index(ReadIndexRequest {})).await;
            Some(response.ok()?.ok()?.into_inner().index)
        }
        None => None,
    }
}

/// The same, of this manager as the leader: a quorum must confirm that it still leads.
pub async fn own_read_index(shared: &Shared, deadline: Instant) -> Option<u64> {
    let read = shared.raft.get_read_log_id(ReadPolicy::ReadIndex);
    let (read_log_id, _) = timeout_at(deadline, read).await.ok()?.ok()?;
    Some(read_log_id.log_id().index)
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
            if let Ok(Ok(response)) = timeout_at(answer, client.status(StatusRequest {})).await {
                return Ok(response.into_inner().nodes);
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
    let connect = network::endpoint(&addr).ok()?;
    let channel = timeout_at(deadline, connect.connect()).await.ok()?.ok()?;
    Some(LeaderClient::new(channel).max_decoding_message_size(network::MAX_MESSAGE))
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
