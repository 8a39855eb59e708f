//! Private keys: ECDSA over P-256, made from a seed, and the node id that belongs to a public key.
//!
//! A key is wiped from memory when it goes, and never shown: `Debug` prints the node id only.

use std::fmt;

use p256::SecretKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Longer texts are refused unread: a key of P-256 takes less than 500 bytes.
const MAX_PEM: usize = 16 << 10;

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM section with a private key, or one that cannot be read.
    #[error("this is not a private key in PEM form")]
    Unreadable,
    /// Encrypted, or for another algorithm.
    #[error("the private key is encrypted or not an ECDSA key of curve P-256, the only kind used")]
    Unsupported,
}

/// A private key.
#[derive(Clone)]
pub struct Key(SigningKey);

impl Key {
    /// The key that belongs to 32 random bytes.
    ///
    /// Almost every seed is a key; one outside of the curve's order (chance 2^-32) is hashed until
    /// it is one, so this never fails and the same seed always gives the same key.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let mut bytes = Zeroizing::new(*seed);
        loop {
            if let Ok(key) = SigningKey::from_slice(&*bytes) {
                return Self(key);
            }
            *bytes = Sha256::digest(*bytes).into();
        }
    }

    /// Reads PKCS #8 (`PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`), the first that is in the text.
    ///
    /// # Errors
    /// [`KeyError`], without a word of the text.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_PEM {
            return Err(KeyError::Unreadable);
        }
        let encrypted = text.contains("ENCRYPTED");
        let unreadable = if encrypted { KeyError::Unsupported } else { KeyError::Unreadable };
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| unreadable)?;
        let secret = match &der {
            PrivateKeyDer::Pkcs8(der) => SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).ok(),
            PrivateKeyDer::Sec1(der) => SecretKey::from_sec1_der(der.secret_sec1_der()).ok(),
            _ => None,
        };
        Ok(Self(secret.ok_or(KeyError::Unsupported)?.into()))
    }

    /// PKCS #8 in PEM form.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.0.to_pkcs8_pem(LineEnding::LF).expect("a key that was read can be written")
    }

    /// PKCS #8 in DER form.
    #[must_use]
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.0.to_pkcs8_der().expect("a key that was read can be written").to_bytes()
    }

    /// The public key as a `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn public_der(&self) -> Vec<u8> {
        public_der(self.0.verifying_key().into())
    }

    /// The id of a node that joins with this key.
    #[must_use]
    pub fn node_id(&self) -> String {
        node_id(&self.public_der())
    }

    /// An ASN.1 signature, ECDSA with SHA-256. The same message gives the same signature
    /// (RFC 6979).
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature = self.0.sign(message);
        signature.to_der().as_bytes().to_vec()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.node_id()).finish()
    }
}

/// The id of a node that joined with this public key, a `SubjectPublicKeyInfo`: whoever claims an
/// id must hold the key, and who asks twice is the same node.
#[must_use]
pub fn node_id(public_der: &[u8]) -> String {
    let digest = Sha256::digest(public_der);
    let (first, _) = digest.split_at(16);
    shoal_api::id::from_bits(u128::from_be_bytes(first.try_into().expect("split at 16 bytes")))
}

/// The one way in which we write a public key, so that one key has one id.
pub(crate) fn public_der(key: p256::PublicKey) -> Vec<u8> {
    key.to_public_key_der().expect("a point can be written").into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_key_and_the_key_survives_its_text() {
        let key = Key::from_seed(&[7; 32]);
        assert_eq!(Key::from_seed(&[7; 32]).to_pem(), key.to_pem());
        assert_ne!(Key::from_seed(&[8; 32]).to_pem(), key.to_pem());
        assert_eq!(Key::from_pem(&key.to_pem()).unwrap().to_pkcs8_der(), key.to_pkcs8_der());
    }

    #[test]
    fn seeds_outside_of_the_curve_give_keys_too() {
        for seed in [[0; 32], [0xff; 32]] {
            assert!(Key::from_pem(&Key::from_seed(&seed).to_pem()).is_ok());
        }
    }

    #[test]
    fn a_node_id_is_the_beginning_of_the_public_keys_digest() {
        let key = Key::from_seed(&[7; 32]);
        let digest = Sha256::digest(key.public_der());
        let bits = u128::from_str_radix(&key.node_id(), 36).unwrap();
        assert_eq!(bits.to_be_bytes(), digest[..16]);
        assert_eq!(key.node_id().len(), shoal_api::id::ID_LENGTH);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let key = Key::from_seed(&[7; 32]).to_pem();
        let cut = &key[..key.len() - 40];
        for text in ["", "hello", cut, &"-".repeat(MAX_PEM + 1)] {
            assert_eq!(Key::from_pem(text).map(drop), Err(KeyError::Unreadable), "{text}");
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = Key::from_seed(&[7; 32]);
        assert_eq!(format!("{key:?}"), format!("Key({:?})", key.node_id()));
    }
}
