//! Join tokens: `SWMTKN-1-DIGEST-SECRET`, in Swarm's form (`SwarmKit`, ca/config.go).
//!
//! The digest pins the root certificate, so that a newcomer knows the cluster before it says a
//! word; the secret is what the cluster knows the newcomer by, and which role it may have. Both are
//! base 36, the digest with 50 characters and the secret with 25.

use std::fmt;

use shoal_api::token::{DIGEST_LENGTH, PREFIX, digest_text};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

const SECRET_LENGTH: usize = shoal_api::id::ID_LENGTH;

/// The text is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid join token")]
pub struct TokenError;

/// A token that was read.
#[derive(Clone)]
pub struct JoinToken {
    /// SHA-256 of the DER of the cluster's root certificate.
    pub root_digest: [u8; 32],
    secret: Zeroizing<String>,
}

impl JoinToken {
    /// The token of a root and a secret of 128 random bits.
    #[must_use]
    pub fn new(root_digest: &[u8; 32], secret: &[u8; 16]) -> Self {
        Self { root_digest: *root_digest, secret: Zeroizing::new(secret_text(secret)) }
    }

    /// Reads a token exactly as it is written: no spaces, no capitals.
    ///
    /// # Errors
    /// [`TokenError`] for any other text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (digest, secret) = text
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
            .filter(|(digest, _)| digest.len() == DIGEST_LENGTH)
            .ok_or(TokenError)?;
        if !is_secret(secret) {
            return Err(TokenError);
        }
        let root_digest = from_base36(digest).ok_or(TokenError)?;
        Ok(Self { root_digest, secret: Zeroizing::new(secret.to_owned()) })
    }

    /// The secret as it stands in the token.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

/// What an operator copies.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", digest_text(&self.root_digest), *self.secret)
    }
}

/// Without the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}-…)", digest_text(&self.root_digest))
    }
}

/// 128 random bits as they stand in a token.
#[must_use]
pub fn secret_text(secret: &[u8; 16]) -> String {
    shoal_api::id::from_bits(u128::from_be_bytes(*secret))
}

/// Whether two tokens (or secrets) are the same, in a time that does not tell where they differ.
#[must_use]
pub fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

fn is_secret(text: &str) -> bool {
    text.len() == SECRET_LENGTH && is_base36(text) && u128::from_str_radix(text, 36).is_ok()
}

fn is_base36(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}

/// `None` unless all characters are digits and the number fits into 256 bits.
fn from_base36(text: &str) -> Option<[u8; 32]> {
    if !is_base36(text) {
        return None;
    }
    let mut bytes = [0_u8; 32];
    for digit in text.chars() {
        let mut carry = digit.to_digit(36)?;
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            let [low, ..] = value.to_le_bytes();
            *byte = low;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: [u8; 32] = [0xab; 32];

    #[test]
    fn a_token_has_swarms_form() {
        let token = JoinToken::new(&DIGEST, &[1; 16]).to_string();
        let parts: Vec<_> = token.split('-').collect();
        assert_eq!(parts[..2], ["SWMTKN", "1"]);
        assert_eq!((parts[2].len(), parts[3].len()), (50, 25));
        let read = JoinToken::parse(&token).unwrap();
        assert_eq!(read.root_digest, DIGEST);
        assert_eq!(read.secret(), secret_text(&[1; 16]));
        let composed = shoal_api::token::compose(&"ab".repeat(32), read.secret());
        assert_eq!(composed, Some(token));
    }

    #[test]
    fn a_digest_is_written_as_one_big_number_with_zeros_in_front() {
        let mut one = [0; 32];
        one[31] = 36;
        assert_eq!(digest_text(&one), format!("{}10", "0".repeat(48)));
        assert_eq!(from_base36(&"z".repeat(50)), None, "more than 256 bits");
        assert_eq!(from_base36(&digest_text(&[0xff; 32])), Some([0xff; 32]));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = JoinToken::new(&DIGEST, &[1; 16]).to_string();
        let digest = digest_text(&DIGEST);
        for text in [
            "",
            "SWMTKN-1--",
            "SWMTKN",
            &good.to_uppercase(),
            &good[..good.len() - 1],
            &format!("{good} "),
            &format!("{good}0"),
            &format!("{good}-0"),
            &good.replace("SWMTKN-1", "SWMTKN-2"),
            &format!("SWMTKN-1-{digest}-{}", "z".repeat(25)),
            &format!("SWMTKN-1-{digest}-+{}", "0".repeat(24)),
            &format!("SWMTKN-1-{}-{}", "é".repeat(25), "0".repeat(25)),
        ] {
            assert_eq!(JoinToken::parse(text).map(drop), Err(TokenError), "{text}");
        }
        assert_eq!(TokenError.to_string(), "invalid join token");
    }

    #[test]
    fn a_secret_survives_a_new_root_and_is_not_shown() {
        let token = JoinToken::new(&DIGEST, &[1; 16]);
        let text = token.to_string();
        let secret = shoal_api::token::secret_of(&text).unwrap();
        assert_eq!(shoal_api::token::compose(&"ab".repeat(32), secret), Some(text.clone()));
        assert!(!format!("{token:?}").contains(secret));
    }

    #[test]
    fn only_equal_tokens_are_the_same() {
        assert!(same("abc", "abc"));
        assert!(!same("abc", "abd") && !same("abc", "ab") && !same("", "a"));
    }
}
