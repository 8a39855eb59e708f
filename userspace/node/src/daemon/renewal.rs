//! When a certificate is to be renewed, and how patiently.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_api::time::Timestamp;
use shoal_transport::Credentials;

/// First and longest pause between two tries while the cluster waits for this node: a root's
/// roll-over and a promotion end when the slowest node has answered.
const WANTED: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The same while there is time: weeks, with the usual certificates, minutes with the shortest.
const DUE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// The machine's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The instant at which these credentials are to be renewed.
///
/// * `seed` - spreads nodes that joined together.
pub fn due(credentials: &Credentials, seed: u64) -> Timestamp {
    let certificate = credentials.certificate();
    shoal_identity::renew_at(certificate.not_before, certificate.not_after, seed)
}

/// Grows from try to try.
#[derive(Debug, Default)]
pub struct Pause {
    tries: u32,
}

impl Pause {
    /// The pause before the next try.
    ///
    /// * `wanted` - whether the cluster waits for it.
    pub fn next(&mut self, wanted: bool) -> Duration {
        let (first, longest) = if wanted { WANTED } else { DUE };
        let pause = first.saturating_mul(1 << self.tries.min(16)).min(longest);
        self.tries += 1;
        pause
    }

    /// It went well.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_grow_rarer_up_to_a_limit_and_begin_anew() {
        let mut pause = Pause::default();
        let tries: Vec<_> = (0..7).map(|_| pause.next(true).as_millis()).collect();
        assert_eq!(tries, [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        assert_eq!(pause.next(false), DUE.1);
        pause.reset();
        assert_eq!(pause.next(false), DUE.0);
    }
}
