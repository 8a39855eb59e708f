//! Requests for a certificate (PKCS #10): what a node sends, and what the cluster reads of it.
//!
//! Only the public key counts. The request's signature proves that the sender holds the private
//! key; names and attributes that a request may have are not even looked at.

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{DerSignature, VerifyingKey};
use x509_cert::der::Decode as _;
use x509_cert::der::oid::db::rfc5912::ECDSA_WITH_SHA_256;
use x509_cert::request::CertReq;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::key::{self, Key};
use crate::x509;

/// Longer requests are refused unread: ours take about 200 bytes.
const MAX_REQUEST: usize = 4 << 10;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than any that a node would send.
    #[error("the certificate request is longer than 4 KiB")]
    TooLong,
    /// Not PKCS #10.
    #[error("the certificate request cannot be read")]
    Unreadable,
    /// Another algorithm or curve.
    #[error("the certificate request is not for an ECDSA key of curve P-256")]
    Algorithm,
    /// Its sender does not hold the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
}

/// The request of `key`'s holder, in DER.
#[must_use]
pub fn request(key: &Key) -> Vec<u8> {
    x509::request(key)
}

/// A request that was read, and is signed by its own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    der: Vec<u8>,
    public_der: Vec<u8>,
}

impl Csr {
    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// [`CsrError`].
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_REQUEST {
            return Err(CsrError::TooLong);
        }
        let request = CertReq::from_der(der).map_err(|_| CsrError::Unreadable)?;
        let public_der = x509::der(&request.info.public_key);
        let public = p256_key(&public_der).ok_or(CsrError::Algorithm)?;
        if request.algorithm.oid != ECDSA_WITH_SHA_256 {
            return Err(CsrError::Algorithm);
        }
        let signature = request.signature.as_bytes().ok_or(CsrError::Signature)?;
        let signature = DerSignature::try_from(signature).map_err(|_| CsrError::Signature)?;
        VerifyingKey::from(public)
            .verify(&x509::der(&request.info), &signature)
            .map_err(|_| CsrError::Signature)?;
        Ok(Self { der: der.to_vec(), public_der: key::public_der(public) })
    }

    /// The request as it came.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The public key, a `SubjectPublicKeyInfo`, written in our one way.
    #[must_use]
    pub fn public_der(&self) -> &[u8] {
        &self.public_der
    }

    /// The id of a node that joins with this request.
    #[must_use]
    pub fn node_id(&self) -> String {
        key::node_id(&self.public_der)
    }
}

/// A key of curve P-256 and nothing else.
pub(crate) fn p256_key(public_der: &[u8]) -> Option<p256::PublicKey> {
    let public = SubjectPublicKeyInfoRef::try_from(public_der).ok()?;
    p256::PublicKey::try_from(public).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_its_key_and_nothing_else() {
        let key = Key::from_seed(&[1; 32]);
        let csr = Csr::parse(&request(&key)).unwrap();
        assert_eq!(csr.public_der(), key.public_der());
        assert_eq!(csr.node_id(), key.node_id());
        assert_eq!(csr.der(), request(&key));
    }

    #[test]
    fn a_request_with_a_changed_bit_is_refused() {
        let good = request(&Key::from_seed(&[1; 32]));
        for place in 0..good.len() {
            for bit in 0..8 {
                let mut changed = good.clone();
                changed[place] ^= 1 << bit;
                assert!(Csr::parse(&changed).is_err(), "byte {place}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_request_that_another_key_signed_is_refused() {
        let (one, other) = (Key::from_seed(&[1; 32]), Key::from_seed(&[2; 32]));
        let mut stolen = CertReq::from_der(&request(&one)).unwrap();
        stolen.signature = CertReq::from_der(&request(&other)).unwrap().signature;
        assert_eq!(Csr::parse(&x509::der(&stolen)), Err(CsrError::Signature));
    }

    #[test]
    fn a_request_of_the_wrong_length_is_refused() {
        let good = request(&Key::from_seed(&[1; 32]));
        assert_eq!(Csr::parse(&good[..good.len() - 1]), Err(CsrError::Unreadable));
        assert_eq!(Csr::parse(&[&good[..], &[0]].concat()), Err(CsrError::Unreadable));
        assert_eq!(Csr::parse(&vec![0; MAX_REQUEST + 1]), Err(CsrError::TooLong));
    }
}
