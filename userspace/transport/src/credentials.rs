//! What a node shows to others, and whom it believes.
//!
//! Clones share one content, which is replaced as a whole: a handshake sees the old certificate with
//! the old roots or the new with the new.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use shoal_identity::{Certificate, Identity, Key};
use tokio::sync::watch;

use crate::verify::{self, Managers, Members};

/// Why a certificate, its key or the roots cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The chain holds no certificate, or one that cannot be read.
    #[error("the certificate cannot be read: {reason}")]
    Certificate {
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate is another key's.
    #[error("the private key does not belong to the certificate")]
    Key,
    /// The roots hold no certificate, or one that cannot be read.
    #[error("the root certificates cannot be read: {reason}")]
    Roots {
        /// What is wrong with them.
        reason: String,
    },
    /// A replacement must be for the same node of the same cluster.
    #[error("the certificate is of node {found}, not of {expected}")]
    OtherNode {
        /// `node/cluster` so far.
        expected: String,
        /// `node/cluster` in the new certificate.
        found: String,
    },
}

/// A node's certificate and key, and the roots it trusts.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    held: ArcSwap<Held>,
    /// Replacing is one at a time.
    writing: Mutex<()>,
    changes: watch::Sender<u64>,
}

/// One content.
pub(crate) struct Held {
    certificate: Certificate,
    issuer_digest: String,
    roots_pem: String,
    pub(crate) own: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) members: Arc<Members>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Credentials {
    /// * `chain_pem` - the node's certificate, then what stands between it and a root.
    /// * `key` - the certificate's.
    /// * `roots_pem` - every root to trust.
    ///
    /// Validity in time is not looked at: that is the other side's to judge.
    ///
    /// # Errors
    /// When one of them cannot be read, or the key is not the certificate's.
    pub fn new(chain_pem: &str, key: &Key, roots_pem: &str) -> Result<Self, CredentialsError> {
        let held = Held::new(own(chain_pem, key)?, roots_pem)?;
        Ok(Self(Arc::new(Inner {
            held: ArcSwap::from_pointee(held),
            writing: Mutex::default(),
            changes: watch::Sender::new(0),
        })))
    }

    /// Takes a renewed certificate; open connections go on with the one that they began with.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the certificate is for another node or cluster. All stays as
    /// it was then.
    pub fn replace(
        &self,
        chain_pem: &str,
        key: &Key,
        roots_pem: &str,
    ) -> Result<(), CredentialsError> {
        let held = Held::new(own(chain_pem, key)?, roots_pem)?;
        let (expected, found) = (self.identity(), &held.certificate.identity);
        if (&expected.node_id, &expected.cluster_id) != (&found.node_id, &found.cluster_id) {
            let name = |of: &Identity| format!("{}/{}", of.node_id, of.cluster_id);
            return Err(CredentialsError::OtherNode {
                expected: name(&expected),
                found: name(found),
            });
        }
        let _writing = self.0.writing.lock();
        self.put(held);
        Ok(())
    }

    /// Trusts these roots from now on, and no others.
    ///
    /// # Errors
    /// When they cannot be read; those so far stay then.
    pub fn trust(&self, roots_pem: &str) -> Result<(), CredentialsError> {
        let _writing = self.0.writing.lock();
        let own = Arc::clone(&self.held().own);
        self.put(Held::new(own, roots_pem)?);
        Ok(())
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.held().certificate.identity.clone()
    }

    /// This node's certificate.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        self.held().certificate.clone()
    }

    /// The roots that are trusted, in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.held().roots_pem.clone()
    }

    /// Digest, in hex, of the trusted root that signed this node's certificate; empty when it is
    /// none of them.
    #[must_use]
    pub fn issuer_digest(&self) -> String {
        self.held().issuer_digest.clone()
    }

    /// Counts up with each replacement of the certificate or the roots.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// How often the content was replaced: a connection that was made under another one is worth
    /// making anew.
    #[must_use]
    pub fn generation(&self) -> u64 {
        *self.0.changes.borrow()
    }

    pub(crate) fn held(&self) -> Arc<Held> {
        self.0.held.load_full()
    }

    fn put(&self, held: Held) {
        self.0.held.store(Arc::new(held));
        self.0.changes.send_modify(|count| *count += 1);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials").field(&self.identity()).finish()
    }
}

impl Held {
    fn new(own: Arc<CertifiedKey>, roots_pem: &str) -> Result<Self, CredentialsError> {
        let certificate = Certificate::from_der(&own.cert[0])
            .map_err(|error| CredentialsError::Certificate { reason: error.to_string() })?;
        let (roots, ders) = roots(roots_pem)?;
        let cluster_id = &certificate.identity.cluster_id;

        let managers = Managers::new(Arc::clone(&roots), cluster_id.clone())?;
        let mut client = verify::client()
            .with_custom_certificate_verifier(Arc::new(managers))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own))));
        verify::tune_client(&mut client);

        // A stranger knows the digest of a root, and finds the root itself here.
        let mut shown = own.cert.clone();
        shown.extend(ders.iter().filter(|der| !own.cert.contains(der)).cloned());
        let shown = Arc::new(CertifiedKey::new(shown, Arc::clone(&own.key)));
        let members = Arc::new(Members::new(Arc::clone(&roots), cluster_id.clone())?);
        let mut server = verify::server()
            .with_client_cert_verifier(Arc::clone(&members) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        verify::tune_server(&mut server);

        Ok(Self {
            issuer_digest: issuer(&certificate, &ders),
            certificate,
            roots_pem: roots_pem.to_owned(),
            own,
            roots,
            client: Arc::new(client),
            members,
            server: Arc::new(server),
        })
    }
}

/// Digest of the root whose key signed the certificate: the chain of the certificate alone ends
/// there.
fn issuer(certificate: &Certificate, roots: &[CertificateDer<'_>]) -> String {
    let signed = |root: &&CertificateDer<'_>| {
        let root = shoal_identity::pem::certificate(root);
        shoal_identity::verify(
            std::slice::from_ref(&certificate.der),
            &root,
            certificate.not_before,
        )
        .is_ok()
    };
    roots.iter().find(signed).map(|root| shoal_identity::digest_hex(root)).unwrap_or_default()
}

/// The node's own certificate with its key.
fn own(chain_pem: &str, key: &Key) -> Result<Arc<CertifiedKey>, CredentialsError> {
    let error = |reason: String| CredentialsError::Certificate { reason };
    let chain = certificates(chain_pem).map_err(error)?;
    let der = PrivatePkcs8KeyDer::from(key.to_pkcs8_der().to_vec());
    let own = CertifiedKey::from_der(chain, PrivateKeyDer::Pkcs8(der), verify::provider());
    own.map(Arc::new).map_err(|problem| match problem {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => CredentialsError::Key,
        other => error(other.to_string()),
    })
}

type Roots = (Arc<RootCertStore>, Vec<CertificateDer<'static>>);

/// The roots, for verifying and as they are.
pub(crate) fn roots(pem: &str) -> Result<Roots, CredentialsError> {
    let error = |reason: String| CredentialsError::Roots { reason };
    let ders = certificates(pem).map_err(error)?;
    let mut store = RootCertStore::empty();
    for der in &ders {
        store.add(der.clone()).map_err(|problem| error(problem.to_string()))?;
    }
    Ok((Arc::new(store), ders))
}

/// At least one certificate.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let ders: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let ders = ders.map_err(|error| error.to_string())?;
    if ders.is_empty() { Err("it holds no certificate".into()) } else { Ok(ders) }
}
