//! Requests, certificates, roots and keys: of newcomers, of files, of operators.

use std::time::Duration;

use shoal_api::time::Timestamp;
use shoal_api::{NodeRole, SigningCa};
use shoal_identity::{
    Certificate, Csr, Identity, Key, Root, RootCertificate, issued_under, pem, request, verify,
};

use crate::choice;

const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Of any bytes, only what the root itself signed is believed, and only a whole request is taken.
pub fn run(input: &[u8]) {
    let (kind, bytes) = choice(input);
    let text = || String::from_utf8_lossy(bytes);
    match kind % 5 {
        0 => {
            if let Ok(csr) = Csr::parse(bytes) {
                let chain = root().issue(&csr, &identity(), NOW, DAY, [1; 16], "");
                let own = Certificate::from_pem(&chain).unwrap();
                assert_eq!(own.public_der, csr.public_der());
                assert_eq!(csr.node_id().len(), 25);
            }
        }
        1 => {
            let _ = Certificate::from_der(bytes);
            believed(&[bytes.to_vec()]);
        }
        2 => {
            let _ = Certificate::from_pem(&text());
            let _ = issued_under(&text(), &text());
            believed(&pem::certificates(&text()).unwrap_or_default());
        }
        3 => {
            if let Ok(given) = RootCertificate::parse(&text(), NOW) {
                let again = RootCertificate::parse(&given.pem(), NOW).unwrap();
                assert_eq!(again.digest(), given.digest());
                let link = root().cross_sign(&given, NOW, [2; 16]);
                assert!(RootCertificate::parse(&link, NOW).is_ok());
            }
        }
        _ => {
            // Certificate and key are often one file.
            let given = SigningCa { cert_pem: text().into(), key_pem: text().into() };
            if let Ok(given) = Root::open(&given, NOW) {
                let csr = Csr::parse(&request(&Key::from_seed(&[2; 32]))).unwrap();
                let chain = given.issue(&csr, &identity(), NOW, DAY, [1; 16], "");
                let chain = pem::certificates(&chain).unwrap();
                verify(&chain, &given.cert_pem(), NOW).unwrap();
            }
        }
    }
}

/// What our root's holder believes is what our root signed.
fn believed(chain: &[Vec<u8>]) {
    if let Ok(own) = verify(chain, &root().cert_pem(), NOW) {
        assert_eq!(own.identity, identity());
    }
}

fn root() -> Root {
    static ROOT: std::sync::OnceLock<Root> = std::sync::OnceLock::new();
    ROOT.get_or_init(|| Root::found(&[1; 32], NOW)).clone()
}

fn identity() -> Identity {
    Identity { node_id: "node".into(), role: NodeRole::Worker, cluster_id: "cluster".into() }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let csr = request(&Key::from_seed(&[2; 32]));
    let chain = root().issue(
        &Csr::parse(&csr).unwrap(),
        &identity(),
        NOW,
        DAY,
        [1; 16],
        &root().cert_pem(),
    );
    let own = Certificate::from_pem(&chain).unwrap().der;
    let with_key = root().cert_pem() + &root().signing_ca().key_pem;
    [(0, csr), (1, own), (2, chain.into()), (3, root().cert_pem().into()), (4, with_key.into())]
        .map(|(kind, bytes)| [vec![kind], bytes].concat())
        .to_vec()
}
