//! This node's certificate, its key and the roots it trusts: `certificates/` in the state directory.
//!
//! The key comes first, before anything is asked for with it: whoever asks twice is one node. A
//! renewed certificate has another key, and a crash between two files must not part them: the key's
//! file holds both keys until the certificate's file is the new one, and a reader takes the key that
//! fits. On a manager the key is sealed by its vault. No network here, and no clock.

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use shoal_identity::{Certificate, Key};
use shoal_manager::{Vault, VaultError};
use zeroize::Zeroizing;

use super::state::{self, StateError};

const FOLDER: &str = "certificates";
const KEY: &str = "node.key";
const CHAIN: &str = "node.pem";
const ROOTS: &str = "roots.pem";
/// Begins a key that is not sealed.
const PEM: &[u8] = b"-----BEGIN";
const END: &str = "-----END PRIVATE KEY-----";

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The disk refuses.
    #[error(transparent)]
    State(#[from] StateError),
    /// The vault refuses.
    #[error("{}: {source}", path.display())]
    Vault {
        /// The key's file.
        path: PathBuf,
        /// What it says.
        source: VaultError,
    },
    /// A worker has no vault.
    #[error("{} is a manager's and sealed: the state directory was changed by hand", path.display())]
    Sealed {
        /// The key's file.
        path: PathBuf,
    },
    /// A file is missing, damaged, or of another node.
    #[error(
        "{} {reason}: bring the state directory back from a backup, or remove it and join again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What a node shows and whom it trusts.
pub struct Held {
    /// Its certificate first, then what stands between it and a root.
    pub chain_pem: String,
    /// All roots to trust.
    pub roots_pem: String,
    /// The certificate's.
    pub key: Key,
}

/// The folder.
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// In a state directory.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join(FOLDER) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Keeps the key of a node that has no certificate yet.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_key(&self, key: &Key) -> Result<(), CertificateError> {
        self.make()?;
        self.write_keys(&key.to_pem(), None)
    }

    /// The key of a node that has no certificate yet.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn load_key(&self) -> Result<Key, CertificateError> {
        let text = self.read_keys(None)?;
        Key::from_pem(&text).map_err(|error| self.damaged(KEY, format!("is damaged ({error})")))
    }

    /// Keeps a certificate with its key, in the place of an earlier pair.
    ///
    /// * `vault` - seals the key; without one it is written as it is.
    ///
    /// # Errors
    /// The disk refuses; what can be loaded then is the old pair or the new one.
    pub fn save(&self, held: &Held, vault: Option<&Vault>) -> Result<(), CertificateError> {
        self.make()?;
        // Wider first: who trusts too little cannot be reached.
        self.save_roots(&held.roots_pem)?;
        let new = held.key.to_pem();
        // A key that fits no certificate is of no use to keep.
        let old = self.load(vault).ok().map(|old| old.key.to_pem());
        if let Some(old) = old.filter(|old| **old != *new) {
            let both = Zeroizing::new(format!("{}\n{}\n", new.trim_end(), old.trim_end()));
            self.write_keys(&both, vault)?;
            state::replace(&self.path(CHAIN), held.chain_pem.as_bytes())?;
            return self.write_keys(&new, vault);
        }
        self.write_keys(&new, vault)?;
        Ok(state::replace(&self.path(CHAIN), held.chain_pem.as_bytes())?)
    }

    /// Trusts these roots from the next start on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_roots(&self, roots_pem: &str) -> Result<(), CertificateError> {
        Ok(state::replace(&self.path(ROOTS), roots_pem.as_bytes())?)
    }

    /// What was kept.
    ///
    /// * `vault` - a manager's; the key's file may be one that is not sealed yet.
    ///
    /// # Errors
    /// A file is missing or damaged, or the key is another's.
    pub fn load(&self, vault: Option<&Vault>) -> Result<Held, CertificateError> {
        let (chain_pem, roots_pem) = (self.read(CHAIN)?, self.read(ROOTS)?);
        let own = Certificate::from_pem(&chain_pem)
            .map_err(|error| self.damaged(CHAIN, format!("is damaged ({error})")))?;
        let text = self.read_keys(vault)?;
        let keys = text.split_inclusive(END).filter_map(|pem| Key::from_pem(pem.trim_start()).ok());
        let key = { keys }.find(|key| key.public_der() == own.public_der);
        let key = key.ok_or_else(|| self.damaged(KEY, "holds no key of node.pem".into()))?;
        Ok(Held { chain_pem, roots_pem, key })
    }

    /// Seals the key: this node is a manager now.
    ///
    /// # Errors
    /// The disk refuses, or the files are damaged.
    pub fn seal(&self, vault: &Vault) -> Result<(), CertificateError> {
        let text = self.read_keys(Some(vault))?;
        self.write_keys(&text, Some(vault))
    }

    fn make(&self) -> Result<(), StateError> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.folder).map_err(|source| StateError::Io {
            what: "make",
            path: self.folder.clone(),
            source,
        })
    }

    fn damaged(&self, name: &str, reason: String) -> CertificateError {
        CertificateError::Damaged { path: self.path(name), reason }
    }

    fn read(&self, name: &str) -> Result<String, CertificateError> {
        let path = self.path(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(self.damaged(name, "is missing".into()))
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(self.damaged(name, "is damaged (not PEM)".into()))
            }
            Err(source) => Err(StateError::Io { what: "read", path, source }.into()),
        }
    }

    fn read_keys(&self, vault: Option<&Vault>) -> Result<Zeroizing<String>, CertificateError> {
        let path = self.path(KEY);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(self.damaged(KEY, "is missing".into()));
            }
            Err(source) => return Err(StateError::Io { what: "read", path, source }.into()),
        };
        let plain = match vault {
            _ if bytes.starts_with(PEM) => bytes,
            None => return Err(CertificateError::Sealed { path }),
            Some(vault) => vault
                .read_file(&path, KEY)
                .map_err(|source| CertificateError::Vault { path: path.clone(), source })?,
        };
        match std::str::from_utf8(&plain) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(self.damaged(KEY, "is damaged (not PEM)".into())),
        }
    }

    fn write_keys(&self, pem: &str, vault: Option<&Vault>) -> Result<(), CertificateError> {
        let path = self.path(KEY);
        match vault {
            None => Ok(state::replace(&path, pem.as_bytes())?),
            Some(vault) => vault
                .write_file(&path, KEY, pem.as_bytes())
                .map_err(|source| CertificateError::Vault { path, source }),
        }
    }

    /// Writes the key as it is, for a node that is a manager no more, and lets the vault go.
    ///
    /// # Errors
    /// The disk refuses, or the vault does.
    pub fn unseal(&self, vault: &Vault) -> Result<(), CertificateError> {
        let text = self.read_keys(Some(vault))?;
        vault.forget_file(&self.path(KEY));
        self.write_keys(&text, None)
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::NodeRole;
    use shoal_api::time::Timestamp;
    use shoal_identity::{Csr, Identity, Root};

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);

    fn held(seed: u8) -> Held {
        let root = Root::found(&[1; 32], NOW);
        let key = Key::from_seed(&[seed; 32]);
        let identity = Identity {
            node_id: "n".repeat(25),
            role: NodeRole::Manager,
            cluster_id: "c".repeat(25),
        };
        let csr = Csr::parse(&shoal_identity::csr::request(&key)).unwrap();
        let life = std::time::Duration::from_secs(3_600);
        let chain_pem = root.issue(&csr, &identity, NOW, life, [seed; 16], "");
        Held { chain_pem, roots_pem: root.signing_ca().cert_pem, key }
    }

    fn is_sealed(certificates: &Certificates) -> bool {
        !std::fs::read(certificates.path(KEY)).unwrap().starts_with(PEM)
    }

    fn check(certificates: &Certificates, vault: Option<&Vault>, expected: &Held) {
        let loaded = certificates.load(vault).unwrap();
        assert_eq!(loaded.chain_pem, expected.chain_pem);
        assert_eq!(loaded.key.public_der(), expected.key.public_der());
    }

    #[test]
    fn a_crash_between_two_files_leaves_a_pair_that_fits() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(dir.path());
        let (old, new) = (held(1), held(2));
        certificates.save(&old, None).unwrap();
        check(&certificates, None, &old);
        // As `save` leaves it between its steps.
        let both = format!("{}\n{}", *new.key.to_pem(), *old.key.to_pem());
        certificates.write_keys(&both, None).unwrap();
        check(&certificates, None, &old);
        state::replace(&certificates.path(CHAIN), new.chain_pem.as_bytes()).unwrap();
        check(&certificates, None, &new);
        certificates.save(&new, None).unwrap();
        check(&certificates, None, &new);
        certificates.save(&old, None).unwrap();
        check(&certificates, None, &old);
    }

    #[test]
    fn a_managers_key_is_sealed_and_a_workers_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(dir.path());
        let (old, new) = (held(1), held(2));
        certificates.save(&old, None).unwrap();
        let vault = Vault::create(&dir.path().join("raft"), None).unwrap();
        certificates.seal(&vault).unwrap();
        assert!(is_sealed(&certificates));
        check(&certificates, Some(&vault), &old);
        let refused = certificates.load(None).err().map(|error| error.to_string()).unwrap();
        assert!(refused.contains("is a manager's and sealed"), "{refused}");
        certificates.save(&new, Some(&vault)).unwrap();
        assert!(is_sealed(&certificates));
        check(&certificates, Some(&vault), &new);
        certificates.unseal(&vault).unwrap();
        assert!(!is_sealed(&certificates));
        check(&certificates, None, &new);
    }

    #[test]
    fn what_is_missing_or_damaged_says_which_file() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(dir.path());
        let error = |certificates: &Certificates| {
            certificates.load(None).err().map(|error| error.to_string()).unwrap()
        };
        assert!(error(&certificates).contains("node.pem is missing"));
        certificates.save(&held(1), None).unwrap();
        certificates.save_key(&Key::from_seed(&[5; 32])).unwrap();
        assert!(error(&certificates).contains("node.key holds no key of node.pem"));
        std::fs::write(certificates.path(CHAIN), "nonsense").unwrap();
        assert!(error(&certificates).contains("node.pem is damaged"));
    }

    #[test]
    fn the_first_key_is_there_before_any_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(dir.path());
        let key = Key::from_seed(&[3; 32]);
        certificates.save_key(&key).unwrap();
        assert_eq!(certificates.load_key().unwrap().node_id(), key.node_id());
    }
}
