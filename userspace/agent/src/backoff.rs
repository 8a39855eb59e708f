//! How long to wait before the next try: doubling, with jitter, so that a thousand agents that
//! lost the same manager do not come back in step.

use std::time::Duration;

/// A growing delay.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` up to `most`.
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The next delay: between half of its step and all of it.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Something worked: the next delay is the first again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_most_and_start_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(2_000));
        for step in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let delay = backoff.next_delay();
            assert!(delay >= ms(step) / 2 && delay <= ms(step), "{delay:?} of {step} ms");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= ms(100));
    }
}
