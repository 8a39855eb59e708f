//! Seals bytes at rest: XChaCha20-Poly1305 under a key of 32 bytes.
//!
//! The context is authenticated and not stored: a sealed record that was moved to another place
//! does not open there. The nonce is 192 bits and random, so that one key may seal any number of
//! records (draft-irtf-cfrg-xchacha-03, section 1).

use chacha20poly1305::aead::Aead as _;
use chacha20poly1305::aead::Payload;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// Bytes of a nonce.
pub const NONCE: usize = 24;

/// Bytes of an authentication tag.
pub const TAG: usize = 16;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = NONCE + TAG;

/// Why sealed bytes did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Fewer bytes than any sealed record has.
    #[error("sealed data is cut off: {length} bytes")]
    TooShort {
        /// How many there are.
        length: usize,
    },
    /// Another key or context, or changed bytes; which of them cannot be known.
    #[error("sealed data does not open: wrong key, or the data is damaged")]
    Refused,
}

/// Seals `plain`: nonce, ciphertext, tag.
///
/// * `nonce` - never the same for two seals under one key: 24 random bytes.
/// * `context` - says what the bytes are and where they belong.
#[must_use]
pub fn seal(key: &[u8; 32], nonce: [u8; NONCE], context: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(OVERHEAD + plain.len());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&encrypt(key, nonce, context, plain));
    sealed
}

/// Opens what [`seal`] made with the same key and context.
///
/// # Errors
/// [`SealError`].
pub fn open(
    key: &[u8; 32],
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let too_short = SealError::TooShort { length: sealed.len() };
    if sealed.len() < OVERHEAD {
        return Err(too_short);
    }
    let (nonce, rest) = sealed.split_first_chunk::<NONCE>().ok_or(too_short)?;
    decrypt(key, *nonce, context, rest).ok_or(SealError::Refused)
}

/// Ciphertext and tag.
pub(crate) fn encrypt(key: &[u8; 32], nonce: [u8; NONCE], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    XChaCha20Poly1305::new(&(*key).into())
        .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad })
        .expect("no record is near the cipher's limit of 256 GiB")
}

/// `None` if it does not open.
pub(crate) fn decrypt(
    key: &[u8; 32],
    nonce: [u8; NONCE],
    aad: &[u8],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    XChaCha20Poly1305::new(&(*key).into())
        .decrypt(&XNonce::from(nonce), Payload { msg: sealed, aad })
        .ok()
        .map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [1; 32];

    #[test]
    fn a_record_opens_with_its_key_and_context_only() {
        let sealed = seal(&KEY, [2; NONCE], b"log 7", b"hello");
        assert_eq!(sealed.len(), 5 + OVERHEAD);
        assert_eq!(**open(&KEY, b"log 7", &sealed).unwrap(), *b"hello");
        assert_eq!(open(&KEY, b"log 8", &sealed), Err(SealError::Refused));
        assert_eq!(open(&[3; 32], b"log 7", &sealed), Err(SealError::Refused));
    }

    #[test]
    fn a_record_with_a_changed_byte_or_a_missing_end_does_not_open() {
        let sealed = seal(&KEY, [2; NONCE], b"x", b"hello");
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(open(&KEY, b"x", &changed), Err(SealError::Refused), "byte {place}");
            let cut = &sealed[..place];
            let expected = match place {
                0..OVERHEAD => SealError::TooShort { length: place },
                _ => SealError::Refused,
            };
            assert_eq!(open(&KEY, b"x", cut), Err(expected), "{place} bytes");
        }
    }

    #[test]
    fn an_empty_record_is_a_record() {
        let sealed = seal(&KEY, [2; NONCE], b"x", b"");
        assert!(open(&KEY, b"x", &sealed).unwrap().is_empty());
    }
}
