//! The newest committed events, so that a watch can go on where it broke off.
//!
//! A bounded ring: a watcher that asks for what has left it must read everything anew. Watchers
//! read at their own speed and never hold back the state machine.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_api::Event;
use tokio::sync::watch;

/// Events that are kept: some tens of megabytes, and minutes of a busy cluster. Of a batch with
/// more, that batch.
const KEPT: usize = 32_768;

/// One committed batch.
pub type Committed = (u64, Arc<Vec<Event>>);

/// The watcher's index has left the ring.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("events after index {after} are not kept any more, the oldest kept follow {floor}: resync")]
pub struct TooOld {
    /// What was asked for.
    pub after: u64,
    /// Index that every kept event follows.
    pub floor: u64,
}

/// The ring.
pub struct Events {
    ring: Mutex<Ring>,
    /// Index of the newest entry that was applied, with or without events.
    applied: watch::Sender<u64>,
}

struct Ring {
    batches: VecDeque<Committed>,
    floor: u64,
    /// Events in all batches.
    events: usize,
    kept: usize,
}

impl Default for Events {
    fn default() -> Self {
        Self::keeping(KEPT)
    }
}

impl Events {
    fn keeping(kept: usize) -> Self {
        let ring = Ring { batches: VecDeque::new(), floor: 0, events: 0, kept };
        Self { ring: Mutex::new(ring), applied: watch::Sender::new(0) }
    }

    /// Takes in what the entry at `index` changed.
    pub fn publish(&self, index: u64, events: Arc<Vec<Event>>) {
        if !events.is_empty() {
            let mut ring = self.ring.lock();
            ring.events += events.len();
            ring.batches.push_back((index, events));
            while ring.events > ring.kept
                && ring.batches.len() > 1
                && let Some((gone, events)) = ring.batches.pop_front()
            {
                ring.floor = gone;
                ring.events -= events.len();
            }
        }
        self.applied.send_replace(index);
    }

    /// Starts anew at a snapshot: what led to it is unknown here.
    pub fn restart(&self, index: u64) {
        {
            let mut ring = self.ring.lock();
            ring.batches.clear();
            ring.events = 0;
            ring.floor = index;
        }
        self.applied.send_replace(index);
    }

    /// Batches after an index.
    ///
    /// # Errors
    /// [`TooOld`]: some of them are gone.
    pub fn after(&self, after: u64) -> Result<Vec<Committed>, TooOld> {
        let ring = self.ring.lock();
        if after < ring.floor {
            return Err(TooOld { after, floor: ring.floor });
        }
        let first = ring.batches.partition_point(|(index, _)| *index <= after);
        Ok(ring.batches.range(first..).cloned().collect())
    }

    /// Follows the index of the newest applied entry.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(events: &Events, index: u64) {
        events.publish(index, Arc::new(vec![Event::default()]));
    }

    fn indexes(events: &Events, after: u64) -> Result<Vec<u64>, TooOld> {
        Ok(events.after(after)?.into_iter().map(|(index, _)| index).collect())
    }

    #[test]
    fn a_watch_goes_on_after_its_index() {
        let events = Events::default();
        for index in [3, 5, 9] {
            publish(&events, index);
        }
        assert_eq!(indexes(&events, 0), Ok(vec![3, 5, 9]));
        assert_eq!(indexes(&events, 4), Ok(vec![5, 9]));
        assert_eq!(indexes(&events, 9), Ok(vec![]));
        assert_eq!(indexes(&events, 70), Ok(vec![]), "an index that is not here yet");
    }

    #[test]
    fn what_has_left_the_ring_is_not_silently_skipped() {
        let events = Events::keeping(2);
        for index in [3, 5, 9] {
            publish(&events, index);
        }
        assert_eq!(indexes(&events, 3), Ok(vec![5, 9]));
        assert_eq!(indexes(&events, 2), Err(TooOld { after: 2, floor: 3 }));
        events.restart(20);
        assert_eq!(indexes(&events, 19), Err(TooOld { after: 19, floor: 20 }));
        assert_eq!(indexes(&events, 20), Ok(vec![]));
    }

    #[test]
    fn large_batches_push_out_more_than_small_ones() {
        let events = Events::keeping(4);
        for index in [3, 5, 9] {
            publish(&events, index);
        }
        events.publish(11, Arc::new(vec![Event::default(); 3]));
        assert_eq!(indexes(&events, 5), Ok(vec![9, 11]));
        events.publish(12, Arc::new(vec![Event::default(); 9]));
        assert_eq!(indexes(&events, 11), Ok(vec![12]), "the newest stays, however large");
        assert!(indexes(&events, 9).is_err());
    }

    #[test]
    fn an_entry_without_events_still_moves_the_applied_index() {
        let events = Events::default();
        events.publish(4, Arc::default());
        assert_eq!((*events.applied().borrow(), indexes(&events, 0)), (4, Ok(vec![])));
    }
}
