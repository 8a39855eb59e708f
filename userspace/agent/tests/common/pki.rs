//! Certificates of one cluster.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_api::NodeRole;
use shoal_api::time::Timestamp;
use shoal_identity::{Csr, Identity, Key, Root, csr};
use shoal_transport::Credentials;

static ROOT: LazyLock<Root> = LazyLock::new(|| Root::found(&[1; 32], now()));

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(now.as_nanos()).unwrap())
}

/// Digest of the cluster's root.
pub fn digest() -> String {
    ROOT.digest_hex()
}

/// A certificate and its key, under the cluster's root.
pub fn issue(node_id: &str, role: NodeRole, seed: u8) -> (String, Key) {
    under(&ROOT, node_id, role, seed)
}

fn under(root: &Root, node_id: &str, role: NodeRole, seed: u8) -> (String, Key) {
    let key = Key::from_seed(&[seed; 32]);
    let request = Csr::parse(&csr::request(&key)).unwrap();
    let identity = Identity { node_id: node_id.into(), role, cluster_id: "alpha".into() };
    let life = Duration::from_secs(3_600);
    (root.issue(&request, &identity, now(), life, [seed; 16], ""), key)
}

pub fn credentials(node_id: &str, role: NodeRole) -> Credentials {
    let (chain, key) = issue(node_id, role, 2);
    Credentials::new(&chain, &key, &ROOT.cert_pem()).unwrap()
}

pub fn roots_pem() -> String {
    ROOT.cert_pem()
}

/// A manager that says it is of the same cluster, under another root.
pub fn impostor() -> Credentials {
    let root = Root::found(&[9; 32], now());
    let (chain, key) = under(&root, "m1", NodeRole::Manager, 3);
    Credentials::new(&chain, &key, &(root.cert_pem() + &roots_pem())).unwrap()
}
