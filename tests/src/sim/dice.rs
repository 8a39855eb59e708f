//! Seeded chance: one source for a whole run, so a seed is a run.

use std::time::Duration;

use parking_lot::Mutex;
use shoal_api::id::IdSource;

/// The run's only chance beside Raft's own, which comes from the same seed.
#[derive(Debug)]
pub(super) struct Dice(Mutex<IdSource>);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(IdSource::new(seed)))
    }

    pub(super) fn next(&self) -> u64 {
        self.0.lock().next_u64()
    }

    pub(super) fn id(&self) -> String {
        self.0.lock().next_id()
    }

    /// From 0 to `n - 1`.
    pub(super) fn below(&self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(super) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn per_mille(&self, chance: u64) -> bool {
        self.below(1_000) < chance
    }

    pub(super) fn between_ms(&self, least: u64, most: u64) -> Duration {
        Duration::from_micros(1_000 * least + self.below(1_000 * (most - least) + 1))
    }

    pub(super) fn pick<T: Clone>(&self, from: &[T]) -> Option<T> {
        let at = self.below(from.len() as u64);
        from.get(usize::try_from(at).ok()?).cloned()
    }

    /// The same items in another order.
    pub(super) fn shuffled<T>(&self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1);
            items.swap(last, usize::try_from(other).expect("an index fits"));
        }
        items
    }
}
