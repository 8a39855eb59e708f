//! Chains as `rustls` sees them: plain, during a roll-over and after it, expired, foreign.

use std::time::Duration;

use shoal_api::NodeRole;
use shoal_api::time::Timestamp;
use shoal_identity::*;

#[test]
fn a_plain_chain_is_believed() {
    let now = Timestamp(1_800_000_000_000_000_000);
    let root = Root::found(&[1; 32], now);
    let key = Key::from_seed(&[2; 32]);
    let csr = Csr::parse(&request(&key)).unwrap();
    assert_eq!(csr.node_id(), key.node_id());
    let identity =
        Identity { node_id: key.node_id(), role: NodeRole::Manager, cluster_id: "c1".into() };
    let chain = root.issue(&csr, &identity, now, Duration::from_secs(3600), [9; 16], "");
    let ders = pem::certificates(&chain).unwrap();
    let c = verify(&ders, &root.cert_pem(), now).unwrap();
    assert_eq!(c.identity, identity);
    println!("{c:?}\n{chain}{}", root.cert_pem());
}
