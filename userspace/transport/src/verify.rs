//! What a certificate of the other side must be like.
//!
//! rustls' own verifiers check chain, dates, purpose and name; what they cannot know comes after:
//! the cluster, and for a node without a certificate the digest of the root.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, RootCertStore, ServerConfig, SignatureScheme, WantsVerifier, version,
};
use shoal_identity::Certificate;

use crate::credentials::CredentialsError;

/// The one protocol that is spoken.
pub(crate) const ALPN: &[u8] = b"h2";

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// The certificate is of another cluster under the same root.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is of cluster {found}, not of {expected}")]
pub(crate) struct Foreign {
    expected: String,
    found: String,
}

/// No root has the digest that the token names.
#[derive(Debug, thiserror::Error)]
#[error("no certificate has the digest of the token")]
pub(crate) struct NotPinned;

/// Cryptography is ring's.
pub(crate) fn provider() -> &'static CryptoProvider {
    &PROVIDER
}

/// The start of a client's configuration.
pub(crate) fn client() -> Verifying {
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER));
    let builder = builder.with_protocol_versions(&[&version::TLS13]);
    Verifying(builder.expect("ring has the cipher suites of TLS 1.3"))
}

/// A client's configuration that still needs its verifier.
pub(crate) struct Verifying(ConfigBuilder<ClientConfig, WantsVerifier>);

impl Verifying {
    pub(crate) fn with_custom_certificate_verifier(
        self,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        // Not less than rustls' own verifier: each of ours begins with it.
        self.0.dangerous().with_custom_certificate_verifier(verifier)
    }

    pub(crate) fn with_root_certificates(
        self,
        roots: Arc<RootCertStore>,
    ) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        self.0.with_root_certificates(roots)
    }
}

/// The start of a server's configuration.
pub(crate) fn server() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER));
    let builder = builder.with_protocol_versions(&[&version::TLS13]);
    builder.expect("ring has the cipher suites of TLS 1.3")
}

/// Every handshake is a full one: a removed node does not come back by an old session.
pub(crate) fn tune_client(config: &mut ClientConfig) {
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
}

/// As [`tune_client`].
pub(crate) fn tune_server(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
}

/// Accepts managers of our cluster.
#[derive(Debug)]
pub(crate) struct Managers {
    chain: Arc<WebPkiServerVerifier>,
    cluster_id: String,
}

impl Managers {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        cluster_id: String,
    ) -> Result<Self, CredentialsError> {
        let chain = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&PROVIDER));
        Ok(Self { chain: chain.build().map_err(unusable)?, cluster_id })
    }
}

/// Accepts members of our cluster, and those who show no certificate.
#[derive(Debug)]
pub(crate) struct Members {
    chain: Arc<dyn ClientCertVerifier>,
    cluster_id: String,
}

impl Members {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        cluster_id: String,
    ) -> Result<Self, CredentialsError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&PROVIDER));
        let chain = chain.allow_unauthenticated().build().map_err(unusable)?;
        Ok(Self { chain, cluster_id })
    }
}

/// Accepts managers whose chain ends in the root of this digest.
#[derive(Debug)]
pub(crate) struct Pinned {
    root_digest: [u8; 32],
}

impl Pinned {
    pub(crate) fn new(root_digest: [u8; 32]) -> Self {
        Self { root_digest }
    }
}

fn unusable(error: impl std::error::Error) -> CredentialsError {
    CredentialsError::Roots { reason: error.to_string() }
}

/// Roots of two clusters have the same name: a signature that does not fit is one by the other's.
fn by_another(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        other => other,
    }
}

fn same_cluster(certificate: &CertificateDer<'_>, expected: &str) -> Result<(), Error> {
    let found = Certificate::from_der(certificate)
        .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?
        .identity
        .cluster_id;
    if found == expected {
        return Ok(());
    }
    let foreign = Foreign { expected: expected.to_owned(), found };
    Err(CertificateError::Other(OtherError(Arc::new(foreign))).into())
}

fn schemes() -> Vec<SignatureScheme> {
    PROVIDER.signature_verification_algorithms.supported_schemes()
}

fn tls12() -> Result<HandshakeSignatureValid, Error> {
    // Not reached: no configuration here offers it.
    Err(Error::General("TLS 1.2 is not spoken".into()))
}

fn tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &PROVIDER.signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
}

impl ServerCertVerifier for Managers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .chain
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(by_another)?;
        same_cluster(end_entity, &self.cluster_id)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = |der: &&CertificateDer<'_>| shoal_identity::digest(der) == self.root_digest;
        let not_pinned = || CertificateError::Other(OtherError(Arc::new(NotPinned)));
        let root = intermediates.iter().find(pinned).ok_or_else(not_pinned)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&PROVIDER))
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(by_another)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Members {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified =
            self.chain.verify_client_cert(end_entity, intermediates, now).map_err(by_another)?;
        same_cluster(end_entity, &self.cluster_id)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
