//! Why a manager could not be reached, in a sentence that says who must do what.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::verify::{Foreign, NotPinned};

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// It names no host and port.
    #[error("{addr:?} is not HOST:PORT")]
    Address {
        /// As given.
        addr: String,
    },
    /// The name has no address, or nobody says.
    #[error("cannot look up {addr}: {reason}")]
    Lookup {
        /// As given.
        addr: String,
        /// What the system says.
        reason: String,
    },
    /// Nobody listens, or the way is cut.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// As given.
        addr: String,
        /// What the system says.
        reason: String,
    },
    /// Somebody listens and does not say who it is.
    #[error("{addr} does not answer")]
    Silent {
        /// As given.
        addr: String,
    },
    /// Something else than a manager listens there.
    #[error("{addr} is not a Shoal manager: {reason}")]
    NotShoal {
        /// As given.
        addr: String,
        /// How it differs.
        reason: String,
    },
    /// The token is another cluster's, or older than the last change of the root.
    #[error("remote CA does not match fingerprint. Expected: {expected}")]
    Fingerprint {
        /// As given.
        addr: String,
        /// Digest in the token, in hex.
        expected: String,
    },
    /// By our clock the certificate is not valid now.
    #[error("the certificate of {addr} {when}: check the clocks of both machines")]
    Clock {
        /// As given.
        addr: String,
        /// `expired … ago` or `is not valid for another …`.
        when: String,
    },
    /// It is a manager of another cluster.
    #[error("{addr} belongs to another cluster: {reason}")]
    Foreign {
        /// As given.
        addr: String,
        /// How we know.
        reason: String,
    },
    /// It is a member, and no manager.
    #[error("{addr} is not a manager: its certificate is a worker's")]
    NotManager {
        /// As given.
        addr: String,
    },
    /// It does not want our certificate.
    #[error("{addr} refuses this node's certificate: {reason}")]
    Refused {
        /// As given.
        addr: String,
        /// What it holds against it.
        reason: Refusal,
    },
}

/// What a manager has against this node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// By its clock it is not valid now.
    #[error("it is expired or not yet valid there; check the clocks of both machines")]
    Clock,
    /// It trusts none of the roots above it.
    #[error("it is of another cluster, or of a root that is no longer trusted")]
    Root,
    /// Same root, another cluster.
    #[error("it is of another cluster")]
    Cluster,
    /// Anything else.
    #[error("it is not usable for this")]
    Other,
}

/// The other side closed the connection, with or without having read everything.
const HUNG_UP: [io::ErrorKind; 3] =
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];

/// What kept a call from reaching anyone, if that is why it failed.
///
/// A channel connects by itself and again; this finds the reason in the status of a call.
#[must_use]
pub fn dial_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a DialError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<DialError>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl DialError {
    /// From a handshake that failed, or the first look at what the other side sends.
    ///
    /// * `expected` - the token's digest in hex, when one is pinned.
    pub(crate) fn handshake(addr: &str, expected: Option<&str>, error: &io::Error) -> Self {
        let addr = addr.to_owned();
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(problem)) => {
                Self::certificate(addr, expected, problem)
            }
            Some(rustls::Error::AlertReceived(alert)) => match refusal(*alert) {
                Some(reason) => Self::Refused { addr, reason },
                None => Self::NotShoal { addr, reason: format!("it sent the TLS alert {alert:?}") },
            },
            Some(
                rustls::Error::InvalidMessage(_)
                | rustls::Error::InappropriateMessage { .. }
                | rustls::Error::InappropriateHandshakeMessage { .. }
                | rustls::Error::PeerIncompatible(_)
                | rustls::Error::PeerMisbehaved(_),
            ) => Self::NotShoal { addr, reason: "it does not speak TLS 1.3".into() },
            Some(other) => Self::NotShoal { addr, reason: other.to_string() },
            None if HUNG_UP.contains(&error.kind()) => Self::Unreachable {
                addr,
                reason: "it hangs up at once, as a port that is not a Shoal manager does".into(),
            },
            None => Self::Unreachable { addr, reason: error.to_string() },
        }
    }

    fn certificate(addr: String, expected: Option<&str>, problem: &CertificateError) -> Self {
        match problem {
            CertificateError::ExpiredContext { time, not_after } => {
                let since = time.as_secs().saturating_sub(not_after.as_secs());
                Self::Clock { addr, when: format!("expired {} ago", rough(since)) }
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                let until = not_before.as_secs().saturating_sub(time.as_secs());
                Self::Clock { addr, when: format!("is not valid for another {}", rough(until)) }
            }
            CertificateError::UnknownIssuer => Self::Foreign {
                addr,
                reason: "no root that this node trusts has signed its certificate".into(),
            },
            CertificateError::NotValidForNameContext { .. } => Self::NotManager { addr },
            CertificateError::Other(other) => {
                if other.0.is::<NotPinned>() {
                    let expected = expected.unwrap_or_default().to_owned();
                    return Self::Fingerprint { addr, expected };
                }
                let reason = other.0.to_string();
                if other.0.is::<Foreign>() {
                    Self::Foreign { addr, reason }
                } else {
                    Self::NotShoal { addr, reason }
                }
            }
            other => Self::NotShoal { addr, reason: format!("its certificate: {other}") },
        }
    }
}

/// What an alert says about the certificate that we showed; see `CertificateError` in rustls for
/// what the other side turns into which.
fn refusal(alert: AlertDescription) -> Option<Refusal> {
    match alert {
        AlertDescription::CertificateExpired => Some(Refusal::Clock),
        AlertDescription::UnknownCA => Some(Refusal::Root),
        AlertDescription::CertificateUnknown => Some(Refusal::Cluster),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateRequired
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => Some(Refusal::Other),
        _ => None,
    }
}

/// A time in its largest unit, for people.
fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_in_its_largest_unit() {
        let check = |seconds, expected: &str| assert_eq!(rough(seconds), expected);
        check(0, "0 s");
        check(119, "119 s");
        check(120, "2 min");
        check(7_200, "2 h");
        check(172_800, "2 days");
    }
}
