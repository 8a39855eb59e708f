//! Streams committed events from an index on, at the watcher's own speed.
//!
//! The cluster's secrets are taken out, and the stream ends with the word of a watcher that was
//! removed from the cluster, is no manager any more, or whose certificate is none any more.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{self, Stream};
use shoal_api::object::Object as Of;
use shoal_api::{Caller, Event, WatchResponse};
use tokio::sync::watch;
use tonic::Status;

use super::{caller, status};
use crate::events::Committed;
use crate::state_machine::View;

/// The stream.
pub type Watch = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

/// Says whether the stream's connection is still worth something.
type Connection = Box<dyn Fn() -> Result<(), Status> + Send>;

struct Watcher {
    caller: Caller,
    connection: Connection,
    view: Arc<View>,
    applied: watch::Receiver<u64>,
    after: u64,
    ready: VecDeque<Committed>,
}

/// Events after an index; 0 means from now on.
pub fn from(
    view: Arc<View>,
    caller: Caller,
    connection: Connection,
    after: u64,
) -> Result<Watch, Status> {
    let applied = view.events.applied();
    let after = if after == 0 { *applied.borrow() } else { after };
    // A watcher that is too late learns so before it waits.
    view.events.after(after).map_err(|reason| status::too_old(&reason))?;
    let watcher = Watcher { caller, connection, view, applied, after, ready: VecDeque::new() };
    let events = stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(Some(response)) => Some((Ok(response), Some(watcher))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Box::pin(events))
}

impl Watcher {
    async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        loop {
            if let Some((index, events)) = self.ready.pop_front() {
                self.after = index;
                (self.connection)()?;
                caller::still_manager(&self.view.store(), &self.caller)?;
                let events = events.iter().map(redacted).collect();
                return Ok(Some(WatchResponse { index, events }));
            }
            self.applied.borrow_and_update();
            let newer = self.view.events.after(self.after);
            self.ready = newer.map_err(|reason| status::too_old(&reason))?.into();
            if self.ready.is_empty() && self.applied.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

fn redacted(event: &Event) -> Event {
    let mut event = event.clone();
    if let Some(Of::Cluster(cluster)) = event.object.as_mut().and_then(|of| of.object.as_mut()) {
        *cluster = std::mem::take(cluster).redacted();
    }
    event
}
