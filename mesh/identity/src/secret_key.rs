//! Keys that an operator writes down: the unlock key and the backup key.
//!
//! `SWMKEY-1-…` as Docker shows it, and `SHBKP-1-…`: 32 random bytes in base 64 without padding.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::{Zeroize as _, Zeroizing};

/// The text is not a key of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid key provided")]
pub struct SecretKeyError;

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name([u8; 32]);

        impl $name {
            /// What every such key begins with.
            pub const PREFIX: &'static str = $prefix;

            /// The key of 32 random bytes.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Reads a key as it is written; spaces and line ends around it do not count.
            ///
            /// # Errors
            /// [`SecretKeyError`] for any other text.
            pub fn parse(text: &str) -> Result<Self, SecretKeyError> {
                read(text, Self::PREFIX).map(Self)
            }

            /// The key itself.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        /// What the operator writes down.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = Zeroizing::new(STANDARD_NO_PAD.encode(self.0));
                write!(f, "{}{}", Self::PREFIX, *text)
            }
        }

        /// Hides the key.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}…", Self::PREFIX)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                self.0.zeroize();
            }
        }
    };
}

secret_key! {
    /// Seals the keys of a manager's state while autolock is on.
    UnlockKey, "SWMKEY-1-"
}

secret_key! {
    /// Seals a backup file.
    BackupKey, "SHBKP-1-"
}

fn read(text: &str, prefix: &str) -> Result<[u8; 32], SecretKeyError> {
    let encoded = text.trim().strip_prefix(prefix).ok_or(SecretKeyError)?;
    let bytes = STANDARD_NO_PAD.decode(encoded).map(Zeroizing::new).map_err(|_| SecretKeyError)?;
    bytes.as_slice().try_into().map_err(|_| SecretKeyError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_being_written_down() {
        let key = UnlockKey::from_bytes([0xfe; 32]);
        let text = key.to_string();
        assert_eq!(text, format!("SWMKEY-1-{}{}", "/v7+".repeat(10), "/v4"));
        assert_eq!(UnlockKey::parse(&format!(" {text}\n")), Ok(key));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = BackupKey::from_bytes([1; 32]).to_string();
        for text in [
            "",
            "SHBKP-1-",
            &good[..good.len() - 1],
            &format!("{good}A"),
            &format!("{good}="),
            &UnlockKey::from_bytes([1; 32]).to_string(),
        ] {
            assert_eq!(BackupKey::parse(text), Err(SecretKeyError), "{text}");
        }
        assert_eq!(SecretKeyError.to_string(), "invalid key provided");
    }

    #[test]
    fn a_key_is_not_shown_by_accident() {
        assert_eq!(format!("{:?}", UnlockKey::from_bytes([1; 32])), "SWMKEY-1-…");
        assert_eq!(format!("{:?}", BackupKey::from_bytes([1; 32])), "SHBKP-1-…");
    }
}
