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
