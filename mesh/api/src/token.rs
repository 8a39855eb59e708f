//! The text of a join token, as `SwarmKit` writes it: `SWMTKN-1-DIGEST-SECRET`.
//!
//! The digest (SHA-256 of the root certificate's DER) tells a newcomer whom to trust, the secret
//! tells the managers whom to let in. Reading a token is `identity`'s; here it is only put together,
//! for `control` writes new ones when the root or the secret changes.
//!
//! Source: `SwarmKit`, ca/config.go, `GenerateJoinToken`.

/// What every token begins with.
pub const PREFIX: &str = "SWMTKN-1-";
/// Characters of a digest in base 36: 36^50 is over 2^256.
pub const DIGEST_LENGTH: usize = 50;

/// The token of a root, by the hex of its digest, and a secret as it stands in a token. `None` where
/// the digest is not one.
#[must_use]
pub fn compose(root_digest_hex: &str, secret: &str) -> Option<String> {
    Some(format!("{PREFIX}{}-{secret}", digest_text(&from_hex(root_digest_hex)?)))
}

/// The secret's part of a token's text. `None` where it is not a token.
#[must_use]
pub fn secret_of(token: &str) -> Option<&str> {
    let mut parts = token.strip_prefix(PREFIX)?.split('-');
    let (_digest, secret) = (parts.next()?, parts.next()?);
    parts.next().is_none().then_some(secret)
}

/// A digest as it stands in a token: one number in base 36, big-endian as Go's `big.Int` writes it,
/// with zeros in front.
#[must_use]
pub fn digest_text(digest: &[u8; 32]) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut bytes = *digest;
    let mut text = [b'0'; DIGEST_LENGTH];
    for digit in text.iter_mut().rev() {
        // Long division by 36, byte by byte.
        let mut rest = 0;
        for byte in &mut bytes {
            let value = rest * 256 + usize::from(*byte);
            *byte = u8::try_from(value / 36).expect("a remainder below 36 keeps it under 256");
            rest = value % 36;
        }
        *digit = DIGITS[rest];
    }
    text.iter().copied().map(char::from).collect()
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_put_together_as_swarmkit_does() {
        // The largest digest: 2^256 - 1 in base 36 (Python's integers).
        let largest = "6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof";
        let expected = format!("SWMTKN-1-{largest}-secret");
        assert_eq!(compose(&"f".repeat(64), "secret"), Some(expected));
        let small = format!("{}25", "0".repeat(62));
        let expected = format!("SWMTKN-1-{}11-s", "0".repeat(48));
        assert_eq!(compose(&small, "s"), Some(expected));
    }

    #[test]
    fn what_is_no_digest_gives_no_token() {
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32), &"+0".repeat(32)] {
            assert_eq!(compose(bad, "s"), None, "{bad}");
        }
    }

    #[test]
    fn a_tokens_secret_is_found_again() {
        let token = compose(&"ab".repeat(32), "s3cret").unwrap();
        assert_eq!(secret_of(&token), Some("s3cret"));
        for bad in ["", "SWMTKN-1-abc", "SWMTKN-2-a-b", "SWMTKN-1-a-b-c"] {
            assert_eq!(secret_of(bad), None, "{bad}");
        }
    }
}
