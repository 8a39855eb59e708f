//! The network between hosts: every message has its own fate, by chance.
//!
//! A message may be late, lost, or come twice and at another time, which is also how messages are
//! reordered; links may be cut one way only. A caller of a host that is down learns it at once, one
//! of a host that is cut off waits. None of this is told to the receiver. Who calls and who answers
//! must be up at both ends of a message.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::manager::Running;
use super::world::World;

/// Clients' numbers start here; they stand outside and no partition reaches them.
pub(super) const CLIENTS: u32 = 1_000;

/// Why a call gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// Nobody got it.
    Unreachable,
    /// Nobody knows.
    Lost,
}

/// What the network is like now.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    /// Of a thousand messages.
    pub(super) lost: u64,
    /// Of a thousand messages between managers.
    pub(super) doubled: u64,
    /// Longest delay beside the usual one.
    pub(super) delay_ms: u64,
}

/// The links.
#[derive(Default)]
pub(super) struct Net {
    weather: Mutex<Weather>,
    /// From, to.
    cut: Mutex<BTreeSet<(u32, u32)>>,
    pub(super) dropped: AtomicU64,
    pub(super) doubled: AtomicU64,
}

impl Net {
    pub(super) fn set_weather(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    pub(super) fn cut(&self, from: u32, to: u32) {
        self.cut.lock().insert((from, to));
    }

    pub(super) fn join_all(&self) {
        self.cut.lock().clear();
    }

    pub(super) fn passes(&self, from: u32, to: u32) -> bool {
        !self.cut.lock().contains(&(from, to))
    }

    /// How long a message takes, or that it does not arrive.
    fn fate(&self, world: &World, from: u32, to: u32) -> Option<Duration> {
        let weather = self.weather.lock().clone();
        if !self.passes(from, to) || world.dice.per_mille(weather.lost) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let late = weather.delay_ms > 0 && world.dice.one_in(3);
        Some(world.dice.between_ms(0, if late { weather.delay_ms } else { 2 }))
    }
}

/// How a message is sent.
#[derive(Clone, Copy)]
pub(super) struct Sending {
    pub(super) from: u32,
    pub(super) to: u32,
    /// How long the caller waits.
    pub(super) ttl: Duration,
    /// Whether the network may deliver it twice; gRPC over TCP never does, Raft would bear it.
    pub(super) doubles: bool,
}

/// Asks the manager on a host.
///
/// # Errors
/// Nobody got the question, or there was no answer in time.
pub(super) async fn call<A, F, R>(
    world: &Arc<World>,
    sending: Sending,
    handle: F,
) -> Result<A, CallError>
where
    A: Send + 'static,
    R: Future<Output = Option<A>> + Send + 'static,
    F: Fn(Arc<Running>) -> R + Send + Sync + 'static,
{
    let Sending { from, to, ttl, doubles } = sending;
    let Some(there) = world.net.fate(world, from, to) else {
        SimRuntime::sleep(ttl).await;
        // A connection that could not be made, or a request lost on one that stood.
        return Err(if world.dice.one_in(2) { CallError::Unreachable } else { CallError::Lost });
    };
    let handle = Arc::new(handle);
    if doubles && world.dice.per_mille(world.net.weather.lock().doubled) {
        world.net.doubled.fetch_add(1, Ordering::Relaxed);
        let (world, handle) = (world.clone(), handle.clone());
        let late = world.dice.between_ms(0, 1_500);
        drop(SimRuntime::spawn(async move {
            SimRuntime::sleep(late).await;
            if let Some(running) = world.running(to) {
                drop(handle(running).await);
            }
        }));
    }
    let (reply, answer) = oneshot::channel();
    let delivery = {
        let world = world.clone();
        async move {
            SimRuntime::sleep(there).await;
            let Some(running) = world.running(to) else {
                drop(reply.send(Err(CallError::Unreachable)));
                return;
            };
            let answered = handle(running.clone()).await;
            let back = world.net.fate(&world, to, from);
            let (Some(answer), Some(back), true) = (answered, back, running.is_live()) else {
                // Kept open: the caller must wait.
                SimRuntime::sleep(ttl).await;
                return drop(reply);
            };
            SimRuntime::sleep(back).await;
            drop(reply.send(Ok(answer)));
        }
    };
    drop(SimRuntime::spawn(delivery));
    match SimRuntime::timeout(ttl, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => Err(CallError::Lost),
    }
}
