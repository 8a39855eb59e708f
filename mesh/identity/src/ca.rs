//! The cluster's root: founds one, opens one that was given, issues certificates, rolls over.
//!
//! While a roll-over is under way there are two roots. Certificates are issued under the next one
//! and carry it once more, signed by the old one: who trusts only the old root follows that link,
//! who trusts the next one does not need it, and nobody is cut off in between.

use std::time::Duration;

use shoal_api::time::Timestamp;
use shoal_api::{IssuedCertificate, RootCa, RootRotation, SigningCa};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, NameConstraints, SubjectKeyIdentifier};
use x509_cert::name::Name;

use crate::certificate::{date, digest, digest_hex, parse};
use crate::csr::{Csr, p256_key};
use crate::key::{Key, KeyError};
use crate::names::{Identity, role_name};
use crate::renewal::BACKDATE;
use crate::x509::{self, Template, Use};
use crate::{pem, verify};

/// Name of a root that the cluster made itself.
const ROOT_NAME: &str = "swarm-ca";

/// 20 years, as Swarm's: nobody is to notice the end of a root that nobody rolled over.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// Why a root cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// Not PEM, not X.509, or nothing at all.
    #[error("the root certificate cannot be read: it must be one certificate in PEM form")]
    Unreadable,
    /// More than one certificate.
    #[error("the root must be one certificate, and {count} were given")]
    Several {
        /// How many.
        count: usize,
    },
    /// Not made to sign others.
    #[error("the root certificate is not one of a certificate authority")]
    NotAuthority,
    /// Made to sign some names only.
    #[error("the root certificate has name constraints: it could not sign for every node")]
    Constrained,
    /// The clock is past its end.
    #[error("the root certificate has expired at {at}")]
    Expired {
        /// When it ended.
        at: String,
    },
    /// The clock is before its beginning.
    #[error("the root certificate is not valid before {at}: check the clock")]
    NotYet {
        /// When it begins.
        at: String,
    },
    /// The key cannot be read or used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Another algorithm or curve.
    #[error("the root certificate is not for an ECDSA key of curve P-256")]
    Algorithm,
    /// The key is of another certificate.
    #[error("the private key does not belong to the root certificate")]
    KeyMismatch,
    /// Nothing can link a new root to one whose key is elsewhere.
    #[error(
        "the cluster does not have the key of its present root, which must sign the new one: give \
         the present root with its key first, by \"shoal ca --rotate --ca-cert FILE --ca-key FILE\""
    )]
    Unlinked,
    /// As [`CaError::Unlinked`], to a root whose key is elsewhere, too.
    #[error("rotating from one external CA to a different external CA is not supported")]
    BothExternal,
    /// The cluster has no key to sign with.
    #[error("the cluster does not have the key of its root: an external CA must sign")]
    NoKey,
}

/// A root certificate, with or without the cluster holding its key.
#[derive(Debug, Clone)]
pub struct RootCertificate {
    der: Vec<u8>,
    subject: Name,
    public_der: Vec<u8>,
    key_id: Vec<u8>,
    not_after: Timestamp,
}

impl RootCertificate {
    /// Reads a root and checks that it may sign for nodes, now.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn parse(cert_pem: &str, now: Timestamp) -> Result<Self, CaError> {
        let ders = pem::certificates(cert_pem).map_err(|_| CaError::Unreadable)?;
        let [der] = ders.as_slice() else {
            let count = ders.len();
            return Err(if count == 0 { CaError::Unreadable } else { CaError::Several { count } });
        };
        let certificate = parse(der).map_err(|_| CaError::Unreadable)?;
        // A root that TLS does not take would cut off every node.
        if !verify::is_anchor(der) {
            return Err(CaError::Unreadable);
        }
        let body = certificate.tbs_certificate;
        let constraints = body.get::<BasicConstraints>().map_err(|_| CaError::Unreadable)?;
        let usage = body.get::<KeyUsage>().map_err(|_| CaError::Unreadable)?;
        let may_sign = usage.is_none_or(|(_, usage)| usage.key_cert_sign());
        if !constraints.is_some_and(|(_, it)| it.ca) || !may_sign {
            return Err(CaError::NotAuthority);
        }
        if body.get::<NameConstraints>().map_err(|_| CaError::Unreadable)?.is_some() {
            return Err(CaError::Constrained);
        }
        let not_before = x509::instant(body.validity.not_before);
        let not_after = x509::instant(body.validity.not_after);
        if now < not_before {
            return Err(CaError::NotYet { at: date(not_before) });
        }
        if not_after < now {
            return Err(CaError::Expired { at: date(not_after) });
        }
        let public_der = x509::der(&body.subject_public_key_info);
        let key_id = body.get::<SubjectKeyIdentifier>().map_err(|_| CaError::Unreadable)?;
        let key_id = match key_id {
            Some((_, id)) => id.0.as_bytes().to_vec(),
            None => x509::key_id(&public_der),
        };
        Ok(Self { der: der.clone(), subject: body.subject, public_der, key_id, not_after })
    }

    /// The certificate as text, without what stood around it.
    #[must_use]
    pub fn pem(&self) -> String {
        pem::certificate(&self.der)
    }

    /// SHA-256 of the certificate, in hex.
    #[must_use]
    pub fn digest_hex(&self) -> String {
        digest_hex(&self.der)
    }

    /// SHA-256 of the certificate.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        digest(&self.der)
    }
}

/// A root with its key: what issues certificates.
#[derive(Debug, Clone)]
pub struct Root {
    certificate: RootCertificate,
    key: Key,
}

impl Root {
    /// A new root, named `swarm-ca`, that signs itself; valid for 20 years.
    ///
    /// `seed` is 32 random bytes: the key is made from it.
    #[must_use]
    pub fn found(seed: &[u8; 32], now: Timestamp) -> Self {
        let key = Key::from_seed(seed);
        let public_der = key.public_der();
        let key_id = x509::key_id(&public_der);
        let mut serial = [0; 16];
        serial.copy_from_slice(&key_id[..16]);
        let name = x509::root_name(ROOT_NAME);
        let template = Template {
            serial,
            issuer: name.clone(),
            issuer_key_id: key_id,
            not_before: now - BACKDATE,
            not_after: now + ROOT_LIFE,
            subject: name,
            public_der: &public_der,
            usage: Use::Authority,
        };
        let cert_pem = pem::certificate(&template.sign(&key));
        let certificate = RootCertificate::parse(&cert_pem, now)
            .expect("a root that was just made is a valid one");
        Self { certificate, key }
    }

    /// Opens a root that the cluster keeps, or that an operator gave.
    ///
    /// # Errors
    /// [`CaError`]: what is wrong with the certificate or the key.
    pub fn open(ca: &SigningCa, now: Timestamp) -> Result<Self, CaError> {
        let certificate = RootCertificate::parse(&ca.cert_pem, now)?;
        if ca.key_pem.is_empty() {
            return Err(CaError::NoKey);
        }
        let key = Key::from_pem(&ca.key_pem)?;
        if p256_key(&certificate.public_der).is_none() {
            return Err(CaError::Algorithm);
        }
        if certificate.public_der != key.public_der() {
            return Err(CaError::KeyMismatch);
        }
        Ok(Self { certificate, key })
    }

    /// Certificate and key as the cluster's store keeps them.
    #[must_use]
    pub fn signing_ca(&self) -> SigningCa {
        SigningCa { cert_pem: self.certificate.pem(), key_pem: self.key.to_pem().to_string() }
    }

    /// The certificate alone.
    #[must_use]
    pub fn certificate(&self) -> &RootCertificate {
        &self.certificate
    }

    /// The certificate as text.
    #[must_use]
    pub fn cert_pem(&self) -> String {
        self.certificate.pem()
    }

    /// SHA-256 of the certificate, in hex.
    #[must_use]
    pub fn digest_hex(&self) -> String {
        self.certificate.digest_hex()
    }

    /// SHA-256 of the certificate.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.certificate.digest()
    }

    /// Issues a node's certificate: the chain as text, the node's own first.
    ///
    /// It is valid from an hour ago (or as long ago as it will live, if that is less) until `life`
    /// from now, and never longer than the root. Of the request only the key counts.
    ///
    /// * `serial` - 16 random bytes.
    /// * `extra_chain_pem` - what stands between this root and the one that others trust, or
    ///   nothing.
    #[must_use]
    pub fn issue(
        &self,
        request: &Csr,
        identity: &Identity,
        now: Timestamp,
        life: Duration,
        serial: [u8; 16],
        extra_chain_pem: &str,
    ) -> String {
        let role = role_name(identity.role);
        let template = Template {
            serial,
            issuer: self.certificate.subject.clone(),
            issuer_key_id: self.certificate.key_id.clone(),
            not_before: now - BACKDATE.min(life),
            not_after: (now + life).min(self.certificate.not_after),
            subject: x509::node_name(&identity.cluster_id, role, &identity.node_id),
            public_der: request.public_der(),
            usage: Use::Node { dns: [role, &identity.node_id] },
        };
        let mut chain = pem::certificate(&template.sign(&self.key));
        chain.push_str(extra_chain_pem);
        chain
    }

    /// The next root's name and key, signed by this root: the link between the two, as text.
    ///
    /// * `serial` - 16 random bytes.
    #[must_use]
    pub fn cross_sign(&self, next: &RootCertificate, now: Timestamp, serial: [u8; 16]) -> String {
        let template = Template {
            serial,
            issuer: self.certificate.subject.clone(),
            issuer_key_id: self.certificate.key_id.clone(),
            not_before: now - BACKDATE,
            not_after: next.not_after.min(self.certificate.not_after),
            subject: next.subject.clone(),
            public_der: &next.public_der,
            usage: Use::Authority,
        };
        pem::certificate(&template.sign(&self.key))
    }
}

/// The roll-over from the cluster's root to `next`, which may come without its key where an
/// external CA will sign.
///
/// Where `next` is the cluster's root there is nothing to link: its key comes or goes, and a
/// roll-over that is under way is called off (`SwarmKit`, controlapi/`ca_rotation`.go, has it so).
///
/// * `serial` - 16 random bytes.
///
/// # Errors
/// [`CaError`] of `next`; [`CaError::Unlinked`] and [`CaError::BothExternal`] if the cluster does not
/// hold its present root's key.
pub fn rotation(
    root_ca: &RootCa,
    next: &SigningCa,
    now: Timestamp,
    serial: [u8; 16],
) -> Result<RootRotation, CaError> {
    let certificate = check(next, now)?;
    let digest = certificate.digest_hex();
    let cross_signed_pem = if digest == root_ca.digest {
        String::new()
    } else {
        // By the root that all trust, also where another roll-over is under way.
        let current = root_ca.signing.as_ref().ok_or(CaError::Unreadable)?;
        let current = Root::open(current, now).map_err(|error| match error {
            CaError::NoKey if next.key_pem.is_empty() => CaError::BothExternal,
            CaError::NoKey => CaError::Unlinked,
            error => error,
        })?;
        current.cross_sign(&certificate, now, serial)
    };
    let next = SigningCa { cert_pem: certificate.pem(), key_pem: next.key_pem.clone() };
    Ok(RootRotation { cross_signed_pem, digest, next: Some(next) })
}

/// Checks a root that an operator gave, with its key if it has one.
///
/// # Errors
/// [`CaError`].
pub fn check(ca: &SigningCa, now: Timestamp) -> Result<RootCertificate, CaError> {
    if ca.key_pem.is_empty() {
        RootCertificate::parse(&ca.cert_pem, now)
    } else {
        Root::open(ca, now).map(|root| root.certificate)
    }
}

/// Every root to trust now, as text: the cluster's and, during a roll-over, the next one.
#[must_use]
pub fn roots_pem(root_ca: &RootCa) -> String {
    let next = root_ca.rotation.as_ref().and_then(|rotation| rotation.next.as_ref());
    root_ca.signing.iter().chain(next).map(|ca| ca.cert_pem.as_str()).collect()
}

/// SHA-256, in hex, of the root that certificates are issued under now.
#[must_use]
pub fn issuer_digest(root_ca: &RootCa) -> &str {
    root_ca.rotation.as_ref().map_or(&root_ca.digest, |rotation| &rotation.digest)
}

/// What an issued certificate's chain has beside the node's own, now.
#[must_use]
pub fn extra_chain_pem(root_ca: &RootCa) -> &str {
    root_ca.rotation.as_ref().map_or("", |rotation| &rotation.cross_signed_pem)
}

/// The root that certificates are issued under now.
///
/// # Errors
/// [`CaError::Unreadable`] if the cluster has none.
pub fn signing(root_ca: &RootCa) -> Result<&SigningCa, CaError> {
    let next = root_ca.rotation.as_ref().and_then(|rotation| rotation.next.as_ref());
    next.or(root_ca.signing.as_ref()).ok_or(CaError::Unreadable)
}

/// Issues a certificate as the cluster stands: under its root or, during a roll-over, under the
/// next one with the link to the old one.
///
/// * `life` - how long it is valid.
/// * `serial` - 16 random bytes.
///
/// # Errors
/// [`CaError`] of the root, [`CaError::NoKey`] where an external CA must sign.
pub fn issue_for(
    root_ca: &RootCa,
    life: Duration,
    request: &Csr,
    identity: &Identity,
    now: Timestamp,
    serial: [u8; 16],
) -> Result<IssuedCertificate, CaError> {
    let root = Root::open(signing(root_ca)?, now)?;
    let extra = extra_chain_pem(root_ca);
    Ok(IssuedCertificate {
        chain_pem: root.issue(request, identity, now, life, serial, extra),
        roots_pem: roots_pem(root_ca),
        role: identity.role.into(),
    })
}
