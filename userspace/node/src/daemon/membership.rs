//! Asks a cluster's managers to let this node in.

use std::time::Duration;

use shoal_api::membership_client::MembershipClient;
use shoal_api::{JoinRequest, JoinResponse};
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tracing::debug;

/// How long a manager may take to accept the connection: an address that nobody has is silent.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it may take to answer: longer than an election.
const ANSWER: Duration = Duration::from_secs(10);

/// Why the node was not let in.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No manager answered; it may be worth trying again.
    #[error("no manager answered: {}", reasons.join("; "))]
    NoAnswer {
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

/// Asks one manager after the other, until one answers.
///
/// # Errors
/// None answered, or one refused.
pub async fn ask(addrs: &[String], request: &JoinRequest) -> Result<JoinResponse, AskError> {
    let mut reasons = Vec::new();
    for addr in addrs {
        match ask_one(addr, request.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(status) if passes(&status) => {
                debug!(%addr, %status, "manager did not answer");
                reasons.push(format!("{addr}: {}", status.message()));
            }
            Err(status) => return Err(AskError::Refused { reason: status.message().to_owned() }),
        }
    }
    Err(AskError::NoAnswer { reasons })
}

async fn ask_one(addr: &str, request: JoinRequest) -> Result<JoinResponse, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|error| Status::invalid_argument(format!("{addr} is not HOST:PORT: {error}")))?;
    let channel = endpoint
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        .connect()
        .await
        .map_err(|error| Status::unavailable(cause(&error)))?;
    Ok(MembershipClient::new(channel).join(request).await?.into_inner())
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
    )
}

/// The innermost reason, which is the system's: `Connection refused`.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_is_told_for_each_address() {
        // Nobody listens on port 1 of loopback.
        let addrs = ["127.0.0.1:1".to_owned(), "not an address".to_owned()];
        let error = ask(&addrs[..1], &JoinRequest::default()).await.unwrap_err().to_string();
        assert_eq!(error, "no manager answered: 127.0.0.1:1: Connection refused (os error 111)");
        let error = ask(&addrs[1..], &JoinRequest::default()).await.unwrap_err().to_string();
        assert!(error.contains("is not HOST:PORT"), "{error}");
    }
}
