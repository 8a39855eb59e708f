//! Streams committed events from an index on, at the watcher's own speed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{self, Stream};
use shoal_api::WatchResponse;
use tokio::sync::watch;
use tonic::Status;

use super::status;
use crate::events::Committed;
use crate::state_machine::View;

/// The stream.
pub type Watch = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

struct Watcher {
    view: Arc<View>,
    applied: watch::Receiver<u64>,
    after: u64,
    ready: VecDeque<Committed>,
}

/// Events after an index; 0 means from now on.
pub fn from(view: Arc<View>, after: u64) -> Result<Watch, Status> {
    let applied = view.events.applied();
    let after = if after == 0 { *applied.borrow() } else { after };
    // A watcher that is too late learns so before it waits.
    view.events.after(after).map_err(|reason| status::too_old(&reason))?;
    let watcher = Watcher { view, applied, after, ready: VecDeque::new() };
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
                return Ok(Some(WatchResponse { index, events: Arc::unwrap_or_clone(events) }));
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
