//! Opens connections to managers.
//!
//! An address is looked up anew whenever a connection is made, also when a channel makes its next
//! one by itself: a name may lead elsewhere by then. All addresses of a name are tried.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use shoal_identity::{JoinToken, MANAGER};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::credentials::{Credentials, CredentialsError, roots};
use crate::error::DialError;
use crate::stream::Stream;
use crate::verify::{self, ALPN, Pinned};

/// A resolver that does not answer is given up after this; its own limits are longer.
const LOOKUP: Duration = Duration::from_secs(5);

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// For each address: a peer on a local network answers a SYN at once or not at all.
    pub connect_timeout: Duration,
    /// For each address: until its certificate is checked and it has taken ours.
    pub handshake_timeout: Duration,
    /// A silent connection is probed this often.
    pub keepalive_interval: Duration,
    /// A probe without an answer in this time ends the connection.
    pub keepalive_timeout: Duration,
    /// Probes also while no call is under way.
    pub keepalive_while_idle: bool,
}

impl Default for Dial {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_millis(400),
            handshake_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(2),
            keepalive_while_idle: false,
        }
    }
}

/// Connects to the manager at `addr`, `HOST:PORT`, and returns when it has taken our certificate.
/// The channel connects again by itself; [`dial_error`](crate::dial_error) finds out why a later
/// call did not reach anyone.
///
/// # Errors
/// When `addr` leads to no manager of our cluster, or it does not want us.
pub async fn connect(
    credentials: &Credentials,
    addr: &str,
    dial: &Dial,
) -> Result<Channel, DialError> {
    Dialer::new(addr, dial, Trust::Member(credentials.clone()))?.channel().await
}

/// As [`connect`], at the first call.
///
/// # Errors
/// `addr` is not `HOST:PORT`.
pub fn lazy(credentials: &Credentials, addr: &str, dial: &Dial) -> Result<Channel, DialError> {
    Ok(Dialer::new(addr, dial, Trust::Member(credentials.clone()))?.lazy())
}

/// Connects without a certificate to a manager of the token's cluster.
///
/// # Errors
/// When `addr` leads to no manager, or to one of another cluster.
pub async fn connect_with_token(
    addr: &str,
    token: &JoinToken,
    dial: &Dial,
) -> Result<Channel, DialError> {
    let pinned = Arc::new(Pinned::new(token.root_digest));
    let mut config =
        verify::client().with_custom_certificate_verifier(pinned).with_no_client_auth();
    verify::tune_client(&mut config);
    let expected = token.root_digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Dialer::new(addr, dial, Trust::Token { config: Arc::new(config), expected })?.channel().await
}

/// Connects to a web server, a CA of the operator's for example, and shows it this node's
/// certificate when it asks. It speaks HTTP/1.1.
///
/// * `roots_pem` - what to trust; `None` trusts the cluster's roots.
///
/// # Errors
/// [`HttpsError`]: the roots cannot be read, or the server is not reached or not trusted.
pub async fn https(
    credentials: &Credentials,
    addr: &str,
    roots_pem: Option<&str>,
    dial: &Dial,
) -> Result<Stream, HttpsError> {
    let held = credentials.held();
    let trusted = match roots_pem {
        Some(pem) => roots(pem)?.0,
        None => Arc::clone(&held.roots),
    };
    let own = rustls::sign::SingleCertAndKey::from(Arc::clone(&held.own));
    let mut config =
        verify::client().with_root_certificates(trusted).with_client_cert_resolver(Arc::new(own));
    verify::tune_client(&mut config);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let dialer = Dialer::new(addr, dial, Trust::Web(Arc::new(config)))?;
    Ok(dialer.dial().await?)
}

/// Why a web server is not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpsError {
    /// The roots for it cannot be used.
    #[error(transparent)]
    Roots(#[from] CredentialsError),
    /// It is not there, or not trusted.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Whom to believe, and what to show.
#[derive(Clone)]
enum Trust {
    /// As they are when the connection is made.
    Member(Credentials),
    Token {
        config: Arc<ClientConfig>,
        /// The digest, in hex.
        expected: String,
    },
    Web(Arc<ClientConfig>),
}

/// Makes connections to one address.
#[derive(Clone)]
struct Dialer {
    addr: String,
    host: String,
    port: u16,
    dial: Dial,
    trust: Trust,
}

impl Dialer {
    fn new(addr: &str, dial: &Dial, trust: Trust) -> Result<Self, DialError> {
        let (host, port) =
            split(addr).ok_or_else(|| DialError::Address { addr: addr.to_owned() })?;
        let (addr, host) = (addr.to_owned(), host.to_owned());
        Ok(Self { addr, host, port, dial: dial.clone(), trust })
    }

    fn endpoint(&self) -> Endpoint {
        // The connector knows where to; this is what the server finds in its requests.
        Endpoint::from_static("http://swarm-manager")
            .http2_keep_alive_interval(self.dial.keepalive_interval)
            .keep_alive_timeout(self.dial.keepalive_timeout)
            .keep_alive_while_idle(self.dial.keepalive_while_idle)
    }

    async fn channel(self) -> Result<Channel, DialError> {
        let endpoint = self.endpoint();
        let addr = self.addr.clone();
        endpoint.connect_with_connector(self.connector()).await.map_err(|error| {
            match crate::dial_error(&error) {
                Some(found) => found.clone(),
                None => DialError::NotShoal { addr, reason: "it does not speak HTTP/2".into() },
            }
        })
    }

    fn lazy(self) -> Channel {
        self.endpoint().connect_with_connector_lazy(self.connector())
    }

    fn connector(
        self,
    ) -> impl tower::Service<
        tonic::transport::Uri,
        Response = TokioIo<Stream>,
        Error = DialError,
        Future: Send,
    > + Send
    + 'static {
        tower::service_fn(move |_uri| {
            let dialer = self.clone();
            async move { dialer.dial().await.map(TokioIo::new) }
        })
    }

    /// One connection: to the first address that leads to whom we look for.
    async fn dial(&self) -> Result<Stream, DialError> {
        let mut failed: Option<DialError> = None;
        for to in self.look_up().await? {
            match self.dial_one(to).await {
                Ok(stream) => return Ok(stream),
                // Somebody who is the wrong one tells more than nobody.
                Err(error) => match (&failed, &error) {
                    (None, _) | (Some(DialError::Unreachable { .. }), _) => failed = Some(error),
                    _ => {}
                },
            }
        }
        Err(failed.unwrap_or_else(|| self.no_address("it has no address")))
    }

    async fn look_up(&self) -> Result<Vec<SocketAddr>, DialError> {
        match timeout(LOOKUP, lookup_host((self.host.as_str(), self.port))).await {
            Ok(Ok(found)) => Ok(found.collect()),
            Ok(Err(error)) => Err(self.no_address(&error.to_string())),
            Err(_) => Err(self.no_address("no name server answers")),
        }
    }

    fn no_address(&self, reason: &str) -> DialError {
        DialError::Lookup { addr: self.addr.clone(), reason: reason.to_owned() }
    }

    async fn dial_one(&self, to: SocketAddr) -> Result<Stream, DialError> {
        let addr = || self.addr.clone();
        let tcp = timeout(self.dial.connect_timeout, TcpStream::connect(to))
            .await
            .map_err(|_| DialError::Unreachable { addr: addr(), reason: "no answer".into() })?
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| DialError::Unreachable { addr: addr(), reason: error.to_string() })?;
        timeout(self.dial.handshake_timeout, self.shake_hands(tcp))
            .await
            .map_err(|_| DialError::Silent { addr: addr() })?
    }

    async fn shake_hands(&self, tcp: TcpStream) -> Result<Stream, DialError> {
        let (config, expected) = match &self.trust {
            Trust::Member(credentials) => (Arc::clone(&credentials.held().client), None),
            Trust::Token { config, expected } => (Arc::clone(config), Some(expected.as_str())),
            Trust::Web(config) => (Arc::clone(config), None),
        };
        let failed = |error| DialError::handshake(&self.addr, expected, &error);
        let name = match &self.trust {
            Trust::Web(_) => ServerName::try_from(self.host.clone())
                .map_err(|_| DialError::Address { addr: self.addr.clone() })?,
            _ => ServerName::try_from(MANAGER).expect("the manager's name is a DNS name"),
        };
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(failed)?;
        if matches!(self.trust, Trust::Web(_)) {
            return Ok(Stream::new(tls));
        }
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            let reason = "it does not speak HTTP/2".into();
            return Err(DialError::NotShoal { addr: self.addr.clone(), reason });
        }
        Stream::opened(tls).await.map_err(failed)
    }
}

/// Host and port of an address; an IPv6 host stands in brackets.
fn split(addr: &str) -> Option<(&str, u16)> {
    let (host, port) = addr.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let check = |addr, expected| assert_eq!(split(addr), expected, "{addr}");
        check("10.0.0.1:2377", Some(("10.0.0.1", 2377)));
        check("managers.example:2377", Some(("managers.example", 2377)));
        check("[fd00::1]:2377", Some(("fd00::1", 2377)));
        for addr in ["", ":2377", "host", "host:", "host:0", "host:65536", "fd00::1:2377", "[x:1"] {
            check(addr, None);
        }
    }
}
