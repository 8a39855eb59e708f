//! What a root says of itself, in the fields that Docker calls `TLSInfo`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use shoal_api::{Cluster, Node};
use x509_parser::pem::parse_x509_pem;

/// A root certificate, as Docker shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// In PEM.
    pub trust_root: String,
    /// The subject's DER in base64.
    pub issuer_subject: String,
    /// The public key's DER (SPKI) in base64.
    pub issuer_public_key: String,
}

impl TlsInfo {
    /// Reads a root's PEM; one that is none gives `None`.
    pub fn of(pem: &str) -> Option<Self> {
        let (_, block) = parse_x509_pem(pem.as_bytes()).ok()?;
        let certificate = block.parse_x509().ok()?;
        Some(Self {
            trust_root: pem.to_owned(),
            issuer_subject: STANDARD.encode(certificate.subject().as_raw()),
            issuer_public_key: STANDARD.encode(certificate.public_key().raw),
        })
    }

    /// With Docker's names.
    pub fn document(&self) -> Value {
        json!({
            "TrustRoot": self.trust_root,
            "CertIssuerSubject": self.issuer_subject,
            "CertIssuerPublicKey": self.issuer_public_key,
        })
    }
}

/// The cluster's roots: the one that certificates are to be under, and others that still count.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// Digest and certificate of each, the desired one first.
    known: Vec<(String, String)>,
    /// Whether a roll-over is under way.
    pub rotating: bool,
}

impl Roots {
    /// Reads them off the cluster.
    pub fn of(cluster: &Cluster) -> Self {
        let Some(root_ca) = &cluster.root_ca else { return Self::default() };
        let pem = |ca: &Option<shoal_api::SigningCa>| {
            ca.as_ref().map(|ca| ca.cert_pem.clone()).unwrap_or_default()
        };
        let next = root_ca.rotation.as_ref().map(|next| (next.digest.clone(), pem(&next.next)));
        let rotating = next.is_some();
        let now = (root_ca.digest.clone(), pem(&root_ca.signing));
        Self { known: next.into_iter().chain([now]).collect(), rotating }
    }

    /// Digest of the root that every certificate is to be under; empty without a CA.
    pub fn desired(&self) -> &str {
        self.known.first().map_or("", |(digest, _)| digest)
    }

    /// The root that members trust whatever happens, in PEM: the old one while it is replaced.
    pub fn trusted_pem(&self) -> &str {
        self.known.last().map_or("", |(_, pem)| pem)
    }

    /// Whether a node's certificate is under the desired root; `None` when that is not known.
    pub fn is_current(&self, node: &Node) -> Option<bool> {
        let issuer = &node.certificate.as_ref()?.issuer_digest;
        (!self.desired().is_empty()).then(|| issuer == self.desired())
    }

    /// The root that a node's certificate is under, where it is a known one.
    pub fn issuer(&self, node: &Node) -> Option<TlsInfo> {
        let digest = &node.certificate.as_ref()?.issuer_digest;
        let (_, pem) = self.known.iter().find(|(known, _)| known == digest)?;
        TlsInfo::of(pem)
    }
}

/// Docker's word for whether a certificate is under the desired root.
pub fn status(current: Option<bool>) -> &'static str {
    match current {
        Some(true) => "Ready",
        Some(false) => "Needs Rotation",
        None => "Unknown",
    }
}

#[cfg(test)]
pub mod tests {
    use shoal_api::{NodeCertificate, RootCa, RootRotation, SigningCa};

    use super::*;

    /// A root made once for these tests.
    pub const ROOT: &str = include_str!("root.pem");

    /// A cluster with a root, maybe on its way to another one.
    pub fn cluster(next: Option<&str>) -> Cluster {
        let ca = |cert_pem: &str| {
            Some(SigningCa { cert_pem: cert_pem.to_owned(), ..SigningCa::default() })
        };
        let rotation = next.map(|digest| RootRotation {
            next: ca("next"),
            digest: digest.to_owned(),
            ..RootRotation::default()
        });
        let signing = ca(ROOT);
        let root_ca = RootCa { signing, digest: "aa".into(), rotation, ..RootCa::default() };
        Cluster { id: "c".into(), root_ca: Some(root_ca), ..Cluster::default() }
    }

    /// A node with a certificate under the root of a digest.
    pub fn under(digest: &str) -> Node {
        let certificate =
            NodeCertificate { issuer_digest: digest.to_owned(), ..NodeCertificate::default() };
        Node { id: digest.to_owned(), certificate: Some(certificate), ..Node::default() }
    }

    #[test]
    fn a_root_is_shown_with_its_subject_and_key() {
        let info = TlsInfo::of(ROOT).unwrap();
        assert_eq!(info.trust_root, ROOT);
        // A sequence of one set of one attribute, CN = swarm-ca.
        assert_eq!(info.issuer_subject, "MBMxETAPBgNVBAMMCHN3YXJtLWNh");
        assert!(info.issuer_public_key.starts_with("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"));
        assert_eq!(TlsInfo::of("nothing"), None);
    }

    #[test]
    fn while_roots_are_exchanged_the_new_one_is_the_desired_one() {
        let roots = Roots::of(&cluster(None));
        assert_eq!((roots.desired(), roots.rotating), ("aa", false));
        assert_eq!(status(roots.is_current(&under("aa"))), "Ready");
        let roots = Roots::of(&cluster(Some("bb")));
        assert_eq!((roots.desired(), roots.rotating), ("bb", true));
        assert_eq!(roots.trusted_pem(), ROOT);
        assert_eq!(status(roots.is_current(&under("aa"))), "Needs Rotation");
        assert_eq!(status(roots.is_current(&Node::default())), "Unknown");
        assert_eq!(roots.issuer(&under("aa")).unwrap().trust_root, ROOT);
    }
}
