//! Reads a node's certificate: whose it is, for how long, and with which key.
//!
//! Reading is not believing: who issued it is for TLS to check, or for [`crate::verify`].

use std::fmt;

use sha2::{Digest as _, Sha256};
use shoal_api::time::Timestamp;
use x509_cert::certificate::CertificateInner;
use x509_cert::der::asn1::{ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::{CN, O, OU};
use x509_cert::der::{DateTime, Decode as _};
use x509_cert::name::Name;

use crate::csr::p256_key;
use crate::names::{self, Identity};
use crate::{key, pem, x509};

/// Longer ones are refused unread: ours take about 500 bytes.
pub(crate) const MAX_CERTIFICATE: usize = 16 << 10;

/// Why bytes are not a node's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No certificate in the text.
    #[error("there is no certificate in PEM form")]
    Missing,
    /// Not X.509, or far too long.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// Its names are not those of a node.
    #[error("the certificate does not name a node, its role and its cluster")]
    NotANode,
    /// Its key is of another kind.
    #[error("the certificate is not for an ECDSA key of curve P-256")]
    Algorithm,
}

/// A node's certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub identity: Identity,
    /// Not valid before.
    pub not_before: Timestamp,
    /// Not valid after.
    pub not_after: Timestamp,
    /// The certificate as it is.
    pub der: Vec<u8>,
    /// `SubjectPublicKeyInfo`.
    pub public_der: Vec<u8>,
}

impl Certificate {
    /// Reads the certificate of a node.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let body = &certificate.tbs_certificate;
        let public = p256_key(&x509::der(&body.subject_public_key_info))
            .ok_or(CertificateError::Algorithm)?;
        Ok(Self {
            identity: identity(&body.subject).ok_or(CertificateError::NotANode)?,
            not_before: x509::instant(body.validity.not_before),
            not_after: x509::instant(body.validity.not_after),
            der: der.to_vec(),
            public_der: key::public_der(public),
        })
    }

    /// Reads the first certificate of a chain, which is the node's own. The whole chain's DER is
    /// [`pem::certificates`].
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_pem(chain_pem: &str) -> Result<Self, CertificateError> {
        let chain = pem::certificates(chain_pem).map_err(|_| CertificateError::Unreadable)?;
        Self::from_der(chain.first().ok_or(CertificateError::Missing)?)
    }
}

/// Without the bytes.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("not_before", &date(self.not_before))
            .field("not_after", &date(self.not_after))
            .finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate: how tokens pin a root.
#[must_use]
pub fn digest(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// SHA-256 of a certificate in hex.
#[must_use]
pub fn digest_hex(der: &[u8]) -> String {
    digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An instant for people: `2026-11-21T12:31:38Z`.
#[must_use]
pub fn date(at: Timestamp) -> String {
    let at = std::time::Duration::from_secs(at.nanos() / 1_000_000_000);
    DateTime::from_unix_duration(at).map_or_else(|_| "never".to_owned(), |at| at.to_string())
}

/// Reads any certificate, within the length.
pub(crate) fn parse(der: &[u8]) -> Result<CertificateInner, CertificateError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(CertificateError::Unreadable);
    }
    CertificateInner::from_der(der).map_err(|_| CertificateError::Unreadable)
}

/// Exactly one of each of the three names, and a role that we know.
fn identity(subject: &Name) -> Option<Identity> {
    Some(Identity {
        node_id: only(subject, CN)?,
        role: names::role_of(&only(subject, OU)?)?,
        cluster_id: only(subject, O)?,
    })
}

/// The only part of that kind; `None` for none, an empty one, and for several.
fn only(subject: &Name, kind: ObjectIdentifier) -> Option<String> {
    let mut parts = subject.0.iter().flat_map(|part| part.0.iter()).filter(|part| part.oid == kind);
    let part = parts.next()?;
    if parts.next().is_some() {
        return None;
    }
    let text = match part.value.decode_as::<Utf8StringRef<'_>>() {
        Ok(text) => text.as_str().to_owned(),
        Err(_) => part.value.decode_as::<PrintableStringRef<'_>>().ok()?.as_str().to_owned(),
    };
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use shoal_api::NodeRole;

    use crate::x509::{Template, Use};
    use crate::{Csr, Key, Root, request};

    const NOW: Timestamp = Timestamp(1_800_000_000_123_456_789);

    fn signed(subject: Name) -> Vec<u8> {
        let key = Key::from_seed(&[1; 32]);
        let template = Template {
            serial: [1; 16],
            issuer: x509::root_name("x"),
            issuer_key_id: vec![1],
            not_before: NOW,
            not_after: NOW,
            subject,
            public_der: &key.public_der(),
            usage: Use::Authority,
        };
        template.sign(&key)
    }

    #[test]
    fn a_certificate_says_whose_it_is_and_for_how_long() {
        let key = Key::from_seed(&[1; 32]);
        let csr = Csr::parse(&request(&key)).unwrap();
        let identity =
            Identity { node_id: "n1".into(), role: NodeRole::Manager, cluster_id: "c1".into() };
        let life = Duration::from_secs(7200);
        let chain = Root::found(&[2; 32], NOW).issue(&csr, &identity, NOW, life, [3; 16], "");
        let read = Certificate::from_pem(&chain).unwrap();
        assert_eq!(read.identity, identity);
        assert_eq!(read.public_der, key.public_der());
        // Whole seconds; an hour before the issue already.
        assert_eq!(date(read.not_before), "2027-01-15T07:00:00Z");
        assert_eq!(date(read.not_after), "2027-01-15T10:00:00Z");
        assert_eq!(digest_hex(&read.der).len(), 64);
        assert!(!format!("{read:?}").contains("der"));
    }

    #[test]
    fn a_name_that_is_not_a_nodes_is_refused() {
        let read = |subject| Certificate::from_der(&signed(subject)).map(|read| read.identity);
        assert!(read(x509::node_name("c", "swarm-worker", "n")).is_ok());
        let mut twice = x509::node_name("c", "swarm-worker", "n");
        twice.0.extend(x509::root_name("other").0);
        for subject in [
            x509::root_name("swarm-ca"),
            x509::node_name("c", "swarm-boss", "n"),
            x509::node_name("", "swarm-worker", "n"),
            x509::node_name("c", "swarm-worker", ""),
            twice,
        ] {
            assert_eq!(read(subject), Err(CertificateError::NotANode));
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let good = signed(x509::node_name("c", "swarm-worker", "n"));
        let unreadable = |der: &[u8]| {
            assert_eq!(Certificate::from_der(der), Err(CertificateError::Unreadable));
        };
        unreadable(&[]);
        unreadable(&good[..good.len() - 1]);
        unreadable(&[&good[..], &[0]].concat());
        unreadable(&vec![0x30; MAX_CERTIFICATE + 1]);
        assert_eq!(Certificate::from_pem("hello"), Err(CertificateError::Missing));
        let broken = pem::certificate(&good).replace('M', "*");
        assert_eq!(Certificate::from_pem(&broken), Err(CertificateError::Unreadable));
    }
}
