//! Asks a signer outside of the cluster for a node's certificate, by CFSSL's `sign` call.
//!
//! The signer is asked over TLS with this manager's certificate, so it can tell managers from
//! others. Its answer is believed only as far as it goes: the certificate must be for the key and
//! the node that were asked for and lead to the cluster's root. How long it lives is the signer's
//! decision. Signers are asked in their order; the first one that answers well is enough.
//!
//! Source: CFSSL, doc/api/endpoint_sign.txt; `SwarmKit`, ca/external.go.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use shoal_api::time::Timestamp;
use shoal_api::{ExternalCa, IssuedCertificate, RootCa};
use shoal_identity::{Csr, Identity, VerifyError, ca, pem, role_name, verify_issued};
use shoal_transport::{Credentials, Dial, HttpsError, https};

/// For the whole of one question, as `SwarmKit` has it: a joining node waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A signer may be far away, unlike the cluster's managers.
const DIAL: Dial = Dial {
    connect_timeout: Duration::from_secs(2),
    handshake_timeout: Duration::from_secs(2),
    keepalive_interval: Duration::from_secs(1),
    keepalive_timeout: Duration::from_secs(2),
    keepalive_while_idle: false,
};

/// Longer answers are not read: a certificate takes less than 2 KiB.
const MAX_ANSWER: usize = 64 << 10;

/// Longer reasons are cut: they end in logs and in what users see.
const MAX_REASON: usize = 200;

/// Why no external signer gave a certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExternalCaError {
    /// The cluster's specification names none, and the cluster has no key of its own.
    #[error("the cluster does not have the key of its root, and no external CA is set")]
    None,
    /// Not `https://HOST[:PORT]/PATH`.
    #[error("external CA: {url:?} is not of the form https://HOST[:PORT]/PATH")]
    Url { url: String },
    /// Not there, or not trusted.
    #[error("external CA {url} cannot be reached: {cause}")]
    Unreachable { url: String, cause: HttpsError },
    /// No answer in time.
    #[error("external CA {url} did not answer within {} s", TIMEOUT.as_secs())]
    Timeout { url: String },
    /// The connection ended, or it does not speak HTTP.
    #[error("external CA {url} did not answer: {cause}")]
    Broken { url: String, cause: String },
    /// It said no.
    #[error("external CA {url} refused to sign: {reason}")]
    Refused { url: String, reason: String },
    /// What came is not what CFSSL answers.
    #[error("external CA {url} did not answer as CFSSL does (HTTP status {status})")]
    Answer { url: String, status: u16 },
    /// What it signed is of no use.
    #[error("external CA {url} gave a certificate that cannot be used: {cause}")]
    Certificate { url: String, cause: VerifyError },
}

/// Asks the signers for a certificate of `identity` for the key in `request`.
///
/// The answer's chain has the link to the old root in it while the cluster rolls over.
///
/// # Errors
/// That of the signer asked last; those before it are logged.
pub(crate) async fn sign(
    signers: &[ExternalCa],
    credentials: &Credentials,
    root_ca: &RootCa,
    request: &Csr,
    identity: &Identity,
    now: Timestamp,
) -> Result<IssuedCertificate, ExternalCaError> {
    let mut failure = ExternalCaError::None;
    for signer in signers {
        let asked = tokio::time::timeout(TIMEOUT, ask(signer, credentials, request, identity));
        let answer = match asked.await {
            Ok(Ok(certificate)) => take(signer, root_ca, certificate, request, identity, now),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ExternalCaError::Timeout { url: signer.url.clone() }),
        };
        match answer {
            Ok(issued) => return Ok(issued),
            Err(error) => {
                tracing::warn!(node.id = %identity.node_id, %error, "no certificate was signed");
                failure = error;
            }
        }
    }
    Err(failure)
}

/// CFSSL's `signer.SignRequest`, the fields that `SwarmKit` fills in.
#[derive(Serialize)]
struct SignRequest<'a> {
    certificate_request: String,
    hosts: [&'a str; 2],
    subject: Subject<'a>,
}

#[derive(Serialize)]
struct Subject<'a> {
    #[serde(rename = "CN")]
    common_name: &'a str,
    names: [Name<'a>; 1],
}

#[derive(Serialize)]
struct Name<'a> {
    #[serde(rename = "O")]
    organization: &'a str,
    #[serde(rename = "OU")]
    unit: &'a str,
}

/// CFSSL's `api.Response`.
#[derive(Deserialize)]
struct Response {
    success: bool,
    result: Option<Signed>,
    #[serde(default)]
    errors: Vec<Message>,
}

#[derive(Deserialize)]
struct Signed {
    certificate: String,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    message: String,
}

/// One question to one signer: the certificate as it came.
async fn ask(
    signer: &ExternalCa,
    credentials: &Credentials,
    request: &Csr,
    identity: &Identity,
) -> Result<String, ExternalCaError> {
    let url = || signer.url.clone();
    let (addr, path) = split(&signer.url).ok_or_else(|| ExternalCaError::Url { url: url() })?;
    let role = role_name(identity.role);
    let name = Name { organization: &identity.cluster_id, unit: role };
    let body = SignRequest {
        certificate_request: pem::request(request.der()),
        hosts: [role, &identity.node_id],
        subject: Subject { common_name: &identity.node_id, names: [name] },
    };
    let body = serde_json::to_vec(&body).expect("texts can be written as JSON");
    let roots = (!signer.cacert_pem.is_empty()).then_some(signer.cacert_pem.as_str());
    let stream = https(credentials, &addr, roots, &DIAL)
        .await
        .map_err(|cause| ExternalCaError::Unreachable { url: url(), cause })?;

    let broken = |cause: String| ExternalCaError::Broken { url: url(), cause };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.to_string()))?;
    let post = Request::post(path)
        .header(HOST, addr)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| ExternalCaError::Url { url: url() })?;
    let exchange = async {
        let answer = sender.send_request(post).await.map_err(|error| broken(error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|error| broken(error.to_string()))?.to_bytes()))
    };
    // The connection does the work while the exchange waits; it may end before what it brought is
    // looked at.
    tokio::pin!(exchange);
    let (status, body) = tokio::select! {
        done = &mut exchange => done?,
        ended = connection => match ended {
            Ok(()) => exchange.await?,
            Err(error) => return Err(broken(error.to_string())),
        },
    };
    read(signer, status, &body)
}

fn read(signer: &ExternalCa, status: StatusCode, body: &[u8]) -> Result<String, ExternalCaError> {
    let url = signer.url.clone();
    let status = status.as_u16();
    let Ok(response) = serde_json::from_slice::<Response>(body) else {
        return Err(ExternalCaError::Answer { url, status });
    };
    match response {
        Response { success: true, result: Some(signed), .. } => Ok(signed.certificate),
        Response { errors, .. } => {
            let reasons: Vec<_> = errors.into_iter().map(|error| error.message).collect();
            Err(ExternalCaError::Refused { url, reason: short(&reasons.join("; ")) })
        }
    }
}

/// Checks what a signer made, and adds the link to the old root while there are two.
fn take(
    signer: &ExternalCa,
    root_ca: &RootCa,
    certificate: String,
    request: &Csr,
    identity: &Identity,
    now: Timestamp,
) -> Result<IssuedCertificate, ExternalCaError> {
    // By the root that certificates are issued under now, and no older one: a signer that still
    // has the old key would hold up the roll-over for ever.
    let root = ca::signing(root_ca).map_or("", |root| root.cert_pem.as_str());
    verify_issued(&certificate, root, request, identity, now)
        .map_err(|cause| ExternalCaError::Certificate { url: signer.url.clone(), cause })?;
    // What the signer put around its sections goes.
    let chain = pem::certificates(&certificate).unwrap_or_default();
    let mut chain_pem: String = chain.iter().map(|der| pem::certificate(der)).collect();
    chain_pem.push_str(ca::extra_chain_pem(root_ca));
    let roots_pem = ca::roots_pem(root_ca);
    Ok(IssuedCertificate { chain_pem, roots_pem, role: identity.role.into() })
}

/// `HOST:PORT` and what comes after it.
fn split(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    let https = uri.scheme_str() == Some("https");
    let authority = uri.authority().filter(|it| https && !it.as_str().contains('@'))?;
    let port = authority.port_u16().unwrap_or(443);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Some((format!("{}:{port}", authority.host()), path.to_owned()))
}

/// One line of bearable length: it comes from another program.
fn short(reason: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    reason.chars().take(MAX_REASON).map(plain).collect()
}

#[cfg(test)]
mod tests;
