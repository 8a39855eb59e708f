//! Join tokens, unlock keys and backup keys, as people type them.

use shoal_identity::{BackupKey, JoinToken, UnlockKey, token};

/// What is read is written the same, and nothing else is read.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(read) = JoinToken::parse(text) {
        assert_eq!(read.to_string(), text);
        assert_eq!(shoal_api::token::secret_of(text), Some(read.secret()));
        assert_eq!(read.secret().len(), 25);
    }
    if let Ok(key) = UnlockKey::parse(text) {
        assert_eq!(key.to_string(), text.trim());
    }
    if let Ok(key) = BackupKey::parse(text) {
        assert_eq!(key.to_string(), text.trim());
    }
    // A root's digest comes from a certificate; a token of anything else is none.
    let composed = shoal_api::token::compose(text, &token::secret_text(&[7; 16]));
    assert_eq!(composed.is_some(), is_digest(text));
    assert!(composed.is_none_or(|composed| JoinToken::parse(&composed).is_ok()));
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        JoinToken::new(&[0xab; 32], &[1; 16]).to_string(),
        JoinToken::new(&[0xff; 32], &[0xff; 16]).to_string(),
        UnlockKey::from_bytes([1; 32]).to_string(),
        BackupKey::from_bytes([0xfe; 32]).to_string(),
        "ab".repeat(32),
    ];
    texts.map(String::into_bytes).to_vec()
}
