//! Who may join and what a certificate says.
//!
//! Keys, requests, certificates, the cluster's root and its roll-over, join tokens, the keys that
//! operators write down, and the sealing of bytes at rest. All of it is pure: seeds, nonces, serial
//! numbers and `now` are arguments, and the same arguments give the same bytes (signatures are
//! deterministic, RFC 6979). Nothing here opens a socket or a file; `userspace/transport` speaks
//! TLS with what is made here.
//!
//! A node's certificate says three things, as `SwarmKit`'s does (ca/certificates.go): the common
//! name is the node's id, the organizational unit its role, the organization the cluster's id.

pub mod ca;
pub mod certificate;
pub mod csr;
pub mod key;
pub mod names;
pub mod pem;
pub mod renewal;
pub mod seal;
pub mod secret_key;
pub mod stream;
pub mod token;
pub mod verify;
mod x509;

pub use ca::{CaError, Root, RootCertificate, issue_for, issuer_digest, roots_pem};
pub use certificate::{Certificate, CertificateError, digest, digest_hex};
pub use csr::{Csr, CsrError, request};
pub use key::{Key, KeyError, node_id};
pub use names::{Identity, MANAGER, WORKER, role_name};
pub use renewal::renew_at;
pub use seal::{SealError, open, seal};
pub use secret_key::{BackupKey, SecretKeyError, UnlockKey};
pub use stream::{StreamError, StreamOpener, StreamSealer};
pub use token::{JoinToken, TokenError};
pub use verify::{VerifyError, issued_under, issuer_of, verify, verify_issued};
