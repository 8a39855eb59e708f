//! Checks a chain of certificates where TLS does not: files at start, restored backups, answers of
//! an external signer.
//!
//! The rules are those of `rustls`, by the same library.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use shoal_api::NodeRole;
use shoal_api::time::Timestamp;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring};

use crate::certificate::{Certificate, CertificateError, date, digest_hex};
use crate::csr::Csr;
use crate::names::{Identity, role_name};
use crate::pem;

/// Why a chain is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The node's own certificate is missing or cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is no root to check by, or one that cannot be read.
    #[error("the roots to trust cannot be read")]
    Roots,
    /// The clock is past its end.
    #[error("the certificate of node {node_id} has expired at {at}")]
    Expired {
        /// Whose it is.
        node_id: String,
        /// When it ended.
        at: String,
    },
    /// The clock is before its beginning.
    #[error("the certificate of node {node_id} is not valid before {at}: check the clocks")]
    NotYet {
        /// Whose it is.
        node_id: String,
        /// When it begins.
        at: String,
    },
    /// It is for another key than was asked for.
    #[error("the certificate is not for the key that it was asked for")]
    OtherKey,
    /// It names another node, role or cluster, or lacks the name that servers are known by.
    #[error("the certificate does not name the node as it was asked to")]
    OtherName,
    /// No root stands behind it, or a signature is wrong.
    #[error("the certificate of node {node_id} was not issued by this cluster")]
    NotIssued {
        /// Whose it says it is.
        node_id: String,
    },
}

/// Checks that `chain` (DER, the node's own first) leads to one of the roots and is valid now.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(
    chain: &[Vec<u8>],
    roots_pem: &str,
    now: Timestamp,
) -> Result<Certificate, VerifyError> {
    let own = chain.first().ok_or(CertificateError::Missing)?;
    let certificate = Certificate::from_der(own)?;
    check(chain, roots_pem, now, KeyUsage::client_auth(), &certificate)?;
    Ok(certificate)
}

/// Checks what another signer made of a request: a certificate for that key, of that node, which
/// leads to one of the roots and serves for what the role does.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_issued(
    chain_pem: &str,
    roots_pem: &str,
    request: &Csr,
    identity: &Identity,
    now: Timestamp,
) -> Result<Certificate, VerifyError> {
    let chain = pem::certificates(chain_pem).map_err(|_| CertificateError::Unreadable)?;
    let certificate = verify(&chain, roots_pem, now)?;
    if certificate.public_der != request.public_der() {
        return Err(VerifyError::OtherKey);
    }
    let known_as = |name: &str| {
        let own = CertificateDer::from(certificate.der.as_slice());
        let own = EndEntityCert::try_from(&own).map_err(|_| CertificateError::Unreadable)?;
        let name = ServerName::try_from(name).map_err(|_| VerifyError::OtherName)?;
        own.verify_is_valid_for_subject_name(&name).map_err(|_| VerifyError::OtherName)
    };
    if certificate.identity != *identity {
        return Err(VerifyError::OtherName);
    }
    known_as(role_name(identity.role))?;
    if identity.role == NodeRole::Manager {
        // Managers serve; a certificate for clients only would cut the node off.
        check(&chain, roots_pem, now, KeyUsage::server_auth(), &certificate)?;
    }
    Ok(certificate)
}

/// Whether `rustls` takes a certificate as a root; its reader is stricter than ours.
pub(crate) fn is_anchor(der: &[u8]) -> bool {
    anchor_from_trusted_cert(&CertificateDer::from(der)).is_ok()
}

/// What roots may be signed with; nodes' own keys are of P-256.
const ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = &[
    ring::ECDSA_P256_SHA256,
    ring::ECDSA_P384_SHA384,
    ring::ED25519,
    ring::RSA_PKCS1_2048_8192_SHA256,
    ring::RSA_PKCS1_2048_8192_SHA384,
    ring::RSA_PKCS1_2048_8192_SHA512,
];

fn check(
    chain: &[Vec<u8>],
    roots_pem: &str,
    now: Timestamp,
    usage: KeyUsage,
    certificate: &Certificate,
) -> Result<(), VerifyError> {
    let roots = pem::certificates(roots_pem).map_err(|_| VerifyError::Roots)?;
    let roots: Vec<_> = roots.into_iter().map(CertificateDer::from).collect();
    let anchors: Result<Vec<_>, _> = roots.iter().map(anchor_from_trusted_cert).collect();
    let anchors = anchors.map_err(|_| VerifyError::Roots)?;
    if anchors.is_empty() {
        return Err(VerifyError::Roots);
    }
    let mut chain = chain.iter().map(|der| CertificateDer::from(der.as_slice()));
    let own = chain.next().ok_or(CertificateError::Missing)?;
    let own = EndEntityCert::try_from(&own).map_err(|_| CertificateError::Unreadable)?;
    let between: Vec<_> = chain.collect();
    let now = UnixTime::since_unix_epoch(Duration::from_nanos(now.nanos()));
    own.verify_for_usage(ALGORITHMS, &anchors, &between, now, usage, None, None)
        .map(drop)
        .map_err(|error| cause(&error, certificate))
}

fn cause(error: &webpki::Error, certificate: &Certificate) -> VerifyError {
    let node_id = certificate.identity.node_id.clone();
    match error {
        webpki::Error::CertExpired { .. } => {
            VerifyError::Expired { node_id, at: date(certificate.not_after) }
        }
        webpki::Error::CertNotValidYet { .. } => {
            VerifyError::NotYet { node_id, at: date(certificate.not_before) }
        }
        _ => VerifyError::NotIssued { node_id },
    }
}

/// The root that signed a node's certificate itself, by its digest in hex; `None` if none of these
/// did. Whether the certificate is valid now does not count.
#[must_use]
pub fn issuer_of(own_der: &[u8], roots_pem: &str) -> Option<String> {
    let begin = Certificate::from_der(own_der).ok()?.not_before;
    let own = [own_der.to_vec()];
    let roots = pem::certificates(roots_pem).ok()?;
    let root = roots.iter().find(|der| verify(&own, &pem::certificate(der), begin).is_ok())?;
    Some(digest_hex(root))
}

/// As [`issuer_of`], for the first certificate of a chain.
#[must_use]
pub fn issued_under(chain_pem: &str, roots_pem: &str) -> Option<String> {
    issuer_of(&Certificate::from_pem(chain_pem).ok()?.der, roots_pem)
}
