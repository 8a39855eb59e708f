//! Certificates and requests as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Longer texts are refused unread: all roots and a chain take less than 10 KiB.
const MAX_TEXT: usize = 256 << 10;

/// The text has a section that cannot be read, or is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a list of certificates in PEM form")]
pub struct PemError;

/// A certificate as text, with lines of 64 characters.
#[must_use]
pub fn certificate(der: &[u8]) -> String {
    section("CERTIFICATE", der)
}

/// A certificate request as text.
#[must_use]
pub fn request(der: &[u8]) -> String {
    section("CERTIFICATE REQUEST", der)
}

/// The DER of every certificate in a text, in its order; other sections are passed over.
///
/// # Errors
/// [`PemError`].
pub fn certificates(text: &str) -> Result<Vec<Vec<u8>>, PemError> {
    if text.len() > MAX_TEXT {
        return Err(PemError);
    }
    CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|der| der.map(|der| der.to_vec()).map_err(|_| PemError))
        .collect()
}

fn section(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}
