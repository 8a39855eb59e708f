//! Members among themselves: who is believed, and what those are told who are not.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::sync::Arc;

use common::{Cluster, DAY, Seen, Server, key, now, patient, seen};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use shoal_api::NodeRole;
use shoal_api::time::Timestamp;
use shoal_identity::Identity;
use shoal_transport::{Credentials, CredentialsError, DialError, Refusal, dial_error};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn a_service_sees_who_calls_it() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    for (number, role) in [(2, NodeRole::Worker), (3, NodeRole::Manager)] {
        let credentials = cluster.member(&key(number), role);
        let Seen { identity, certificate } = server.asked_by(&credentials).await.unwrap();
        assert_eq!(identity, Some((key(number).node_id(), "alpha".to_owned(), role)));
        assert_eq!(certificate, shoal_identity::digest_hex(&credentials.certificate().der));
    }
}

#[tokio::test]
async fn a_manager_of_another_cluster_is_not_talked_to() {
    let server = Server::start(Cluster::found("alpha").manager()).await;
    let error = server.asked_by(&Cluster::found("beta").worker()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} belongs to another cluster: no root that this node trusts has signed its \
             certificate",
            server.addr
        )
    );
}

#[tokio::test]
async fn a_manager_of_another_cluster_under_the_same_root_is_not_talked_to() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let sister = Cluster { id: "beta", ..Cluster::found("alpha") };
    let error = server.asked_by(&sister.worker()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} belongs to another cluster: the certificate is of cluster alpha, not of beta",
            server.addr
        )
    );
}

#[tokio::test]
async fn a_certificate_that_another_root_signed_is_refused() {
    let (cluster, other) = (Cluster::found("alpha"), Cluster::found("beta"));
    let server = Server::start(cluster.manager()).await;
    // It says that it is of this cluster, and knows whom to trust.
    let identity = cluster.identity(&key(2), NodeRole::Manager);
    let chain = other.chain_at(&key(2), &identity, now());
    let forged = Credentials::new(&chain, &key(2), &cluster.roots_pem()).unwrap();
    let error = server.asked_by(&forged).await.unwrap_err();
    let expected = DialError::Refused { addr: server.addr.clone(), reason: Refusal::Root };
    assert_eq!(error, expected);
    assert_eq!(
        error.to_string(),
        format!(
            "{} refuses this node's certificate: it is of another cluster, or of a root that is \
             no longer trusted",
            server.addr
        )
    );
    assert!(server.asked_by(&cluster.worker()).await.is_ok());
}

#[tokio::test]
async fn a_certificate_of_another_cluster_under_the_same_root_is_refused() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let sister = Cluster { id: "beta", ..Cluster::found("alpha") };
    let alert = alert_for(&server.addr, &sister.chain(&key(2), NodeRole::Manager)).await;
    // What `Refusal::Cluster` is made of.
    assert!(alert.contains("CertificateUnknown"), "{alert}");
}

/// What the server says to one who believes whatever it shows.
async fn alert_for(addr: &str, chain_pem: &str) -> String {
    let chain: Result<_, _> = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect();
    let der = PrivatePkcs8KeyDer::from(key(2).to_pkcs8_der().to_vec());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_auth_cert(chain.unwrap(), PrivateKeyDer::Pkcs8(der))
        .unwrap();
    let tcp = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("swarm-manager").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    tls.read(&mut [0; 64]).await.unwrap_err().to_string()
}

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test]
async fn a_workers_certificate_serves_nobody() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.worker()).await;
    let error = server.asked_by(&cluster.manager()).await.unwrap_err();
    assert_eq!(error, DialError::NotManager { addr: server.addr.clone() });
}

#[tokio::test]
async fn a_clock_that_is_off_is_named_as_such() {
    let cluster = Cluster::found("alpha");
    let dated = |number, at: Timestamp| {
        let identity = cluster.identity(&key(number), NodeRole::Manager);
        let chain = cluster.chain_at(&key(number), &identity, at);
        Credentials::new(&chain, &key(number), &cluster.roots_pem()).unwrap()
    };
    let (past, future) = (now() - DAY * 4, now() + DAY * 3);

    // The server's.
    let check = async |at, when: &str| {
        let server = Server::start(dated(1, at)).await;
        let error = server.asked_by(&cluster.worker()).await.unwrap_err();
        let expected =
            format!("the certificate of {} {when}: check the clocks of both machines", server.addr);
        assert_eq!(error.to_string(), expected);
    };
    check(past, "expired 3 days ago").await;
    check(future, "is not valid for another 2 days").await;

    // Our own.
    let server = Server::start(cluster.manager()).await;
    for at in [past, future] {
        let error = server.asked_by(&dated(2, at)).await.unwrap_err();
        let expected = DialError::Refused { addr: server.addr.clone(), reason: Refusal::Clock };
        assert_eq!(error, expected);
        assert!(error.to_string().contains("check the clocks of both machines"), "{error}");
    }
}

#[tokio::test]
async fn a_call_on_a_channel_that_cannot_connect_tells_why() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(Cluster::found("beta").manager()).await;
    let channel = shoal_transport::lazy(&cluster.worker(), &server.addr, &patient()).unwrap();
    let status = seen(&channel).await.unwrap_err();
    assert!(matches!(dial_error(&status), Some(DialError::Foreign { .. })), "{status:?}");
}

#[tokio::test]
async fn credentials_that_do_not_belong_together_are_refused() {
    let cluster = Cluster::found("alpha");
    let (chain, roots) = (cluster.chain(&key(1), NodeRole::Worker), cluster.roots_pem());
    let check = |chain: &str, number, roots: &str, expected: &str| {
        let error = Credentials::new(chain, &key(number), roots).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(&chain, 2, &roots, "the private key does not belong to the certificate");
    check("", 1, &roots, "the certificate cannot be read: it holds no certificate");
    check(&chain, 1, "", "the root certificates cannot be read: it holds no certificate");

    let credentials = cluster.manager();
    let before = credentials.certificate();
    let error = credentials.replace(&cluster.chain(&key(2), NodeRole::Manager), &key(2), &roots);
    assert!(matches!(error, Err(CredentialsError::OtherNode { .. })));
    let foreign = Identity { cluster_id: "beta".into(), ..credentials.identity() };
    let chain = cluster.chain_at(&key(1), &foreign, now());
    let error = credentials.replace(&chain, &key(1), &roots);
    assert!(matches!(error, Err(CredentialsError::OtherNode { .. })));
    assert_eq!(credentials.certificate(), before);
    assert!(!format!("{credentials:?}").contains("PRIVATE"));
}

#[tokio::test]
async fn an_address_must_name_a_host_and_a_port() {
    let credentials = Cluster::found("alpha").worker();
    let error = shoal_transport::connect(&credentials, "10.0.0.1", &patient()).await.unwrap_err();
    assert_eq!(error.to_string(), "\"10.0.0.1\" is not HOST:PORT");
}
