//! What a manager does for whoever asks it: hands writes to the leader, reads linearizably from its
//! own store. The rules of when to try again are the manager's (rpc/to_leader.rs).

use std::sync::Arc;
use std::time::Duration;

use openraft::raft::ReadPolicy;
use openraft::{AsyncRuntime, Instant as _};
use openraft_rt_sim::{SimInstant, SimRuntime};
use shoal_api::{Write, WriteResult};
use shoal_control::{Refusal, Store};
use tokio::sync::oneshot;

use super::desk::Command;
use super::leader::leader;
use super::manager::Running;
use super::network::{CallError, Sending, call};
use super::world::World;

const RETRY: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_secs(1);
const WRITE: Duration = Duration::from_secs(6);
const READ: Duration = Duration::from_secs(4);

/// How a write ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    Stored(Box<WriteResult>),
    Refused(Refusal),
    /// It may be stored, or be stored later.
    Unknown,
    /// It was not taken.
    NotTaken,
}

/// Does a write on the leader.
pub(super) async fn write(world: Arc<World>, running: Arc<Running>, write: Write) -> End {
    let deadline = SimInstant::now() + WRITE;
    loop {
        if let Some(answer) = hand_in(&running, &write) {
            return match SimRuntime::timeout_at(deadline, answer).await {
                Ok(Ok(Ok(result))) => End::Stored(Box::new(result)),
                Ok(Ok(Err(refusal))) => End::Refused(refusal),
                Ok(Err(_)) | Err(_) => End::Unknown,
            };
        }
        let now = SimInstant::now();
        if let Some((_, to)) = leader(&running).filter(|(id, _)| *id != running.raft_id) {
            let from = running.host.number;
            let sending = Sending { from, to, ttl: deadline - now, doubles: false };
            let write = write.clone();
            let forwarded = call(&world, sending, move |running: Arc<Running>| {
                let write = write.clone();
                async move { Some(forwarded(running, write).await) }
            });
            match forwarded.await {
                Ok(End::NotTaken) | Err(CallError::Unreachable) => {}
                Ok(end) => return end,
                Err(CallError::Lost) => return End::Unknown,
            }
        }
        if !pause(&running, deadline).await {
            return End::NotTaken;
        }
    }
}

/// On the leader.
async fn forwarded(running: Arc<Running>, write: Write) -> End {
    let Some(answer) = hand_in(&running, &write) else { return End::NotTaken };
    match answer.await {
        Ok(Ok(result)) => End::Stored(Box::new(result)),
        Ok(Err(refusal)) => End::Refused(refusal),
        Err(_dropped) => End::Unknown,
    }
}

type Answer = oneshot::Receiver<Result<WriteResult, Refusal>>;

fn hand_in(running: &Running, write: &Write) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    let taken = running.desk.send(Command::Write { write: Box::new(write.clone()), reply });
    taken.then_some(answer)
}

/// This manager's store, once it holds all that was acknowledged before the call.
pub(super) async fn read(world: Arc<World>, running: Arc<Running>) -> Option<Store> {
    let deadline = SimInstant::now() + READ;
    if world.rules.reads_at_once {
        return Some(running.view.store());
    }
    let index = loop {
        match leader(&running) {
            Some((id, _)) if id == running.raft_id => {
                if let Some(index) = own_read_index(&running, deadline).await {
                    break index;
                }
            }
            Some((_, to)) => {
                let ttl = ANSWER.min(deadline - SimInstant::now());
                let sending = Sending { from: running.host.number, to, ttl, doubles: false };
                let asked = call(&world, sending, |running: Arc<Running>| async move {
                    let deadline = SimInstant::now() + READ;
                    Some(own_read_index(&running, deadline).await)
                });
                if let Ok(Some(index)) = asked.await {
                    break index;
                }
            }
            None => {}
        }
        if !pause(&running, deadline).await {
            return None;
        }
    };
    while running.view.applied() < index {
        if !pause(&running, deadline).await {
            return None;
        }
    }
    Some(running.view.store())
}

/// A quorum must confirm that this manager leads.
async fn own_read_index(running: &Running, deadline: SimInstant) -> Option<u64> {
    let read = running.raft.get_read_log_id(ReadPolicy::ReadIndex);
    let (read_log_id, _) = SimRuntime::timeout_at(deadline, read).await.ok()?.ok()?;
    Some(read_log_id.log_id().index)
}

/// Whether there is time left to try again.
async fn pause(running: &Running, deadline: SimInstant) -> bool {
    if !running.is_live() || SimInstant::now() + RETRY >= deadline {
        return false;
    }
    SimRuntime::sleep(RETRY).await;
    true
}

/// A write through the manager on a host.
pub(super) async fn write_through(world: &Arc<World>, from: u32, to: u32, write: Write) -> End {
    let sending = Sending { from, to, ttl: WRITE + ANSWER, doubles: false };
    let inner = world.clone();
    let asked = call(world, sending, move |running: Arc<Running>| {
        let (world, write) = (inner.clone(), write.clone());
        async move { Some(self::write(world, running, write).await) }
    });
    match asked.await {
        Ok(end) => end,
        Err(CallError::Unreachable) => End::NotTaken,
        Err(CallError::Lost) => End::Unknown,
    }
}

/// A linearizable read through the manager on a host.
pub(super) async fn read_through(world: &Arc<World>, from: u32, to: u32) -> Option<Store> {
    let sending = Sending { from, to, ttl: READ + ANSWER, doubles: false };
    let inner = world.clone();
    let asked = call(world, sending, move |running: Arc<Running>| {
        let world = inner.clone();
        async move { Some(read(world, running).await) }
    });
    asked.await.ok().flatten()
}
