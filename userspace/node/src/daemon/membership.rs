//! Asks a cluster's managers: to be let in, with a token, and for a new certificate.
//!
//! One manager after the other, each name looked up anew. A manager that does not lead and says who
//! does is followed once. What is kept of the answers is for the caller.

use std::time::Duration;

use shoal_api::ca_client::CaClient;
use shoal_api::{JoinRequest, JoinResponse, RenewRequest, RenewResponse};
use shoal_identity::JoinToken;
use shoal_transport::{Credentials, Dial, DialError};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tracing::debug;

/// How long a manager may take to accept the connection: an address that nobody has is silent.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it may take to answer: longer than an election, and than an external CA.
const ANSWER: Duration = Duration::from_secs(15);
/// Where managers listen unless somebody says otherwise.
const PORT: u16 = 2377;

/// Why no manager did what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No manager answered; it may be worth trying again.
    #[error("no manager answered: {}", reasons.join("; "))]
    NoAnswer {
        /// What happened at each address.
        reasons: Vec<String>,
    },
    /// Whoever answered is not of our cluster, or none at all; trying again will not help.
    #[error("{}", reasons.join("; "))]
    Wrong {
        /// What happened at each address.
        reasons: Vec<String>,
    },
    /// A manager said no.
    #[error("the cluster refused this node: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
}

/// `HOST:PORT`, with the managers' port where none is given.
pub fn with_port(addr: &str) -> String {
    let has_port = match addr.rsplit_once(':') {
        // More than one colon without brackets is an IPv6 address.
        Some((host, port)) => {
            (!host.contains(':') || host.ends_with(']')) && port.parse::<u16>().is_ok()
        }
        None => false,
    };
    if has_port {
        addr.to_owned()
    } else if addr.contains(':') && !addr.starts_with('[') {
        format!("[{addr}]:{PORT}")
    } else {
        format!("{addr}:{PORT}")
    }
}

/// Asks to be let in.
///
/// # Errors
/// None answered, or one refused.
pub async fn join(
    addrs: &[String],
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<JoinResponse, AskError> {
    let call = |addr: String| {
        let (token, request) = (token.clone(), request.clone());
        async move {
            let channel = shoal_transport::connect_with_token(&addr, &token, &dial()).await?;
            Ok(client(channel).join(request).await)
        }
    };
    ask(addrs, call).await
}

/// Asks for a new certificate.
///
/// # Errors
/// None answered, or one refused: this node was removed.
pub async fn renew(
    addrs: &[String],
    credentials: &Credentials,
    request: &RenewRequest,
) -> Result<RenewResponse, AskError> {
    let call = |addr: String| {
        let (credentials, request) = (credentials.clone(), request.clone());
        async move {
            let channel = shoal_transport::connect(&credentials, &addr, &dial()).await?;
            Ok(client(channel).renew(request).await)
        }
    };
    ask(addrs, call).await
}

fn dial() -> Dial {
    Dial { connect_timeout: CONNECT, ..Dial::default() }
}

fn client(channel: Channel) -> CaClient<Channel> {
    CaClient::new(channel)
}

type Called<T> = Result<Result<Response<T>, Status>, DialError>;

async fn ask<T, F>(addrs: &[String], call: impl Fn(String) -> F) -> Result<T, AskError>
where
    F: Future<Output = Called<T>>,
{
    let (mut reasons, mut hopeless) = (Vec::new(), true);
    // Those that a follower named come next, once each.
    let mut queue: std::collections::VecDeque<String> = addrs.iter().cloned().collect();
    let mut asked = Vec::new();
    while let Some(addr) = queue.pop_front() {
        if asked.contains(&addr) {
            continue;
        }
        asked.push(addr.clone());
        let called = tokio::time::timeout(ANSWER, call(addr.clone())).await;
        let called = called.unwrap_or_else(|_late| Err(DialError::Silent { addr: addr.clone() }));
        match called {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => match leader(&status) {
                Some(leader) => queue.push_front(leader),
                None if passes(&status) => {
                    debug!(%addr, %status, "manager did not answer");
                    hopeless = false;
                    reasons.push(format!("{addr}: {}", status.message()));
                }
                None => return Err(AskError::Refused { reason: status.message().to_owned() }),
            },
            Err(error) => {
                debug!(%addr, %error, "manager is not reached");
                hopeless &= is_hopeless(&error);
                reasons.push(error.to_string());
            }
        }
    }
    Err(if hopeless && !reasons.is_empty() {
        AskError::Wrong { reasons }
    } else {
        AskError::NoAnswer { reasons }
    })
}

/// Who leads, if the manager that was asked does not.
fn leader(status: &Status) -> Option<String> {
    let leader = status.metadata().get(shoal_manager::LEADER)?.to_str().ok()?;
    (status.code() == Code::FailedPrecondition && !leader.is_empty()).then(|| leader.to_owned())
}

/// Without a leader, or on the way to one, the next try may do better.
fn passes(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::ResourceExhausted
    ) || status.metadata().contains_key(shoal_manager::LEADER)
}

/// Whether the same address will say the same a moment later.
fn is_hopeless(error: &DialError) -> bool {
    match error {
        DialError::Unreachable { .. } | DialError::Silent { .. } | DialError::Lookup { .. } => {
            false
        }
        DialError::Address { .. }
        | DialError::NotShoal { .. }
        | DialError::Fingerprint { .. }
        | DialError::Clock { .. }
        | DialError::Foreign { .. }
        | DialError::NotManager { .. }
        | DialError::Refused { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(&[7; 32], &[9; 16])
    }

    async fn refusal(addr: &str) -> AskError {
        join(&[addr.to_owned()], &token(), &JoinRequest::default()).await.unwrap_err()
    }

    #[tokio::test]
    async fn silence_is_told_for_each_address_and_may_pass() {
        // Nobody listens on port 1 of loopback.
        let error = refusal("127.0.0.1:1").await;
        assert!(matches!(error, AskError::NoAnswer { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("no manager answered: "), "{text}");
        assert!(text.contains("127.0.0.1:1") && text.contains("Connection refused"), "{text}");
    }

    #[tokio::test]
    async fn what_is_no_manager_is_not_asked_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                use tokio::io::AsyncWriteExt as _;
                let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await;
            }
        });
        let error = refusal(&addr).await;
        assert!(matches!(error, AskError::Wrong { .. }), "{error}");
        assert!(error.to_string().contains("is not a Shoal manager"), "{error}");
        let both = [addr, "127.0.0.1:1".to_owned()];
        let error = join(&both, &token(), &JoinRequest::default()).await.unwrap_err();
        assert!(matches!(error, AskError::NoAnswer { .. }), "the other may come: {error}");
    }

    #[test]
    fn an_address_without_a_port_gets_the_managers() {
        let check = |given: &str, expected: &str| assert_eq!(with_port(given), expected);
        check("10.0.0.1", "10.0.0.1:2377");
        check("10.0.0.1:99", "10.0.0.1:99");
        check("fd88::1", "[fd88::1]:2377");
        check("[fd88::1]", "[fd88::1]:2377");
        check("[fd88::1]:99", "[fd88::1]:99");
        check("manager.example", "manager.example:2377");
        check("manager.example:99", "manager.example:99");
    }
}
