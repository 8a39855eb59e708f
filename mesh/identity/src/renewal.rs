//! When a node asks for its next certificate.

use std::time::Duration;

use shoal_api::time::Timestamp;

/// How long before its issue a certificate is valid already: clocks may be that far apart.
pub const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// The instant at which to ask: between 50 and 80 % of the certificate's life, by `seed`, so that
/// nodes that joined together do not ask together.
///
/// The hour before the issue does not count as life. A certificate of another signer may be
/// backdated by less: at most half of its span is taken for the time before its issue.
///
/// Source: `SwarmKit`, ca/renewer.go and `calculateRandomExpiry` in ca/certificates.go.
#[must_use]
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, seed: u64) -> Timestamp {
    let span = not_after.since(not_before);
    let issued = not_before + BACKDATE.min(span / 2);
    let life = not_after.since(issued).as_nanos();
    // Thousandths from 500 to 800.
    let thousandths = 500 + u128::from(seed % 301);
    let after = u64::try_from(life * thousandths / 1_000).expect("at most the life, which fits");
    issued + Duration::from_nanos(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = BACKDATE;
    const ISSUED: Timestamp = Timestamp(1_800_000_000_000_000_000);

    /// Earliest and latest renewal after the issue, over all seeds.
    fn window(backdate: Duration, life: Duration) -> (Duration, Duration) {
        let at = |seed| renew_at(ISSUED - backdate, ISSUED + life, seed).since(ISSUED);
        let all = (0..1_000).map(at);
        (all.clone().min().unwrap(), all.max().unwrap())
    }

    #[test]
    fn a_certificate_is_renewed_at_half_to_four_fifths_of_its_life() {
        assert_eq!(window(HOUR, 2160 * HOUR), (1080 * HOUR, 1728 * HOUR));
        // The shortest that a cluster may ask for.
        assert_eq!(window(HOUR, HOUR), (HOUR / 2, HOUR * 4 / 5));
        // Shorter ones, as tests have: backdated by their life.
        let short = Duration::from_secs(10);
        assert_eq!(window(short, short), (short / 2, short * 4 / 5));
    }

    #[test]
    fn a_certificate_of_another_signer_is_renewed_before_its_end() {
        let minute = Duration::from_secs(60);
        for life in [HOUR, 12 * HOUR, 2160 * HOUR] {
            let (earliest, latest) = window(5 * minute, life);
            assert!(life / 3 < earliest && latest < life * 9 / 10, "{earliest:?} {latest:?}");
        }
    }

    #[test]
    fn a_certificate_that_ends_before_it_begins_is_renewed_at_once() {
        assert_eq!(renew_at(ISSUED, ISSUED - HOUR, 7), ISSUED);
    }
}
