//! Chains as `rustls` sees them: plain, during a roll-over and after it, expired and foreign.
//!
//! Each question is asked three times: of the client's verifier, of the server's, and of our own
//! `verify`; they must agree.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use shoal_api::time::Timestamp;
use shoal_api::{IssuedCertificate, NodeRole, RootCa};
use shoal_identity::{
    Csr, Identity, Key, MANAGER, Root, VerifyError, WORKER, ca, issued_under, pem, request, verify,
    verify_issued,
};

const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn found(seed: u8) -> Root {
    Root::found(&[seed; 32], NOW)
}

fn cluster(root: &Root) -> RootCa {
    RootCa { signing: Some(root.signing_ca()), digest: root.digest_hex(), ..RootCa::default() }
}

fn rotating(from: &RootCa, next: &Root) -> RootCa {
    let rotation = ca::rotation(from, &next.signing_ca(), NOW, [7; 16]).unwrap();
    RootCa { rotation: Some(rotation), ..from.clone() }
}

fn issued(cluster: &RootCa, role: NodeRole) -> IssuedCertificate {
    let key = Key::from_seed(&[9; 32]);
    let csr = Csr::parse(&request(&key)).unwrap();
    let identity = Identity { node_id: key.node_id(), role, cluster_id: "c1".into() };
    ca::issue_for(cluster, 90 * DAY, &csr, &identity, NOW, [8; 16]).unwrap()
}

struct Trust {
    roots: Arc<RootCertStore>,
    pem: String,
}

fn trust(pem: &str) -> Trust {
    let mut roots = RootCertStore::empty();
    for der in pem::certificates(pem).unwrap() {
        roots.add(CertificateDer::from(der)).unwrap();
    }
    Trust { roots: Arc::new(roots), pem: pem.to_owned() }
}

/// Whether all verifiers believe the chain, at `now`; they must agree.
fn believed(chain_pem: &str, trust: &Trust, now: Timestamp) -> bool {
    let ders = pem::certificates(chain_pem).unwrap();
    let chain: Vec<_> = ders.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let (own, between) = chain.split_first().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_nanos(now.nanos()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = WebPkiClientVerifier::builder_with_provider(trust.roots.clone(), provider.clone())
        .build()
        .unwrap()
        .verify_client_cert(own, between, at)
        .is_ok();
    let server = WebPkiServerVerifier::builder_with_provider(trust.roots.clone(), provider)
        .build()
        .unwrap()
        .verify_server_cert(own, between, &name(MANAGER), &[], at)
        .is_ok();
    let ours = verify(&ders, &trust.pem, now).is_ok();
    assert_eq!((client, server), (ours, ours), "the verifiers agree");
    ours
}

fn name(name: &str) -> ServerName<'_> {
    ServerName::try_from(name).unwrap()
}

#[test]
fn a_plain_chain_is_believed_by_its_own_cluster_only() {
    let root = found(1);
    let chain = issued(&cluster(&root), NodeRole::Manager).chain_pem;
    assert!(believed(&chain, &trust(&root.cert_pem()), NOW));
    // Roots of all clusters have one name: only the key tells them apart.
    assert!(!believed(&chain, &trust(&found(2).cert_pem()), NOW));
}

#[test]
fn during_a_roll_over_old_and_new_certificates_are_believed_by_everyone() {
    let (old, next) = (found(1), found(2));
    let before = cluster(&old);
    let during = rotating(&before, &next);
    let both = issued(&during, NodeRole::Manager).roots_pem;
    assert_eq!(both, old.cert_pem() + &next.cert_pem());
    let new_chain = issued(&during, NodeRole::Manager).chain_pem;
    for roots in [old.cert_pem(), next.cert_pem(), both.clone()] {
        assert!(believed(&new_chain, &trust(&roots), NOW));
    }
    let old_chain = issued(&before, NodeRole::Manager).chain_pem;
    assert!(believed(&old_chain, &trust(&both), NOW));
    assert_eq!(ca::issuer_digest(&during), next.digest_hex());
}

#[test]
fn after_a_roll_over_the_old_root_is_worth_nothing() {
    let (old, next) = (found(1), found(2));
    let old_chain = issued(&cluster(&old), NodeRole::Manager).chain_pem;
    let after = cluster(&next);
    let only_next = trust(&ca::roots_pem(&after));
    assert!(!believed(&old_chain, &only_next, NOW));
    // Certificates of the roll-over, which carry the link, and later ones, which do not.
    let during = issued(&rotating(&cluster(&old), &next), NodeRole::Manager).chain_pem;
    assert!(believed(&during, &only_next, NOW));
    assert!(believed(&issued(&after, NodeRole::Manager).chain_pem, &only_next, NOW));
}

#[test]
fn a_second_roll_over_supersedes_the_first_and_cuts_nobody_off() {
    let (old, first, second) = (found(1), found(2), found(3));
    let during_first = rotating(&cluster(&old), &first);
    let during_second = rotating(&during_first, &second);
    let everyone = trust(&ca::roots_pem(&during_second));
    assert_eq!(everyone.pem, old.cert_pem() + &second.cert_pem());
    // Who renewed in the first one is known by its link to the old root.
    let renewed = issued(&during_first, NodeRole::Manager).chain_pem;
    assert!(believed(&renewed, &everyone, NOW));
    // Who still trusts old and first believes a certificate of the second.
    let behind = trust(&ca::roots_pem(&during_first));
    assert!(believed(&issued(&during_second, NodeRole::Manager).chain_pem, &behind, NOW));
}

#[test]
fn a_certificate_ends_and_begins_when_it_says() {
    let root = found(1);
    let chain = issued(&cluster(&root), NodeRole::Manager).chain_pem;
    let roots = trust(&root.cert_pem());
    let hour = Duration::from_secs(60 * 60);
    assert!(believed(&chain, &roots, NOW - hour));
    assert!(believed(&chain, &roots, NOW + 90 * DAY));
    assert!(!believed(&chain, &roots, NOW - hour - Duration::from_secs(1)));
    assert!(!believed(&chain, &roots, NOW + 90 * DAY + Duration::from_secs(1)));
}

#[test]
fn our_own_check_says_what_is_wrong() {
    let root = found(1);
    let chain = issued(&cluster(&root), NodeRole::Worker).chain_pem;
    let chain = pem::certificates(&chain).unwrap();
    let node_id = Key::from_seed(&[9; 32]).node_id();
    let at = |now| verify(&chain, &root.cert_pem(), now).map(|own| own.identity.node_id);
    assert_eq!(at(NOW), Ok(node_id.clone()));
    let expired =
        VerifyError::Expired { node_id: node_id.clone(), at: "2027-04-15T08:00:00Z".into() };
    assert_eq!(at(NOW + 91 * DAY), Err(expired));
    let early = VerifyError::NotYet { node_id: node_id.clone(), at: "2027-01-15T07:00:00Z".into() };
    assert_eq!(at(NOW - DAY), Err(early));
    let foreign = verify(&chain, &found(2).cert_pem(), NOW).map(drop);
    assert_eq!(foreign, Err(VerifyError::NotIssued { node_id }));
    assert_eq!(verify(&chain, "", NOW).map(drop), Err(VerifyError::Roots));
}

#[test]
fn a_worker_does_not_pass_for_a_manager_and_a_node_not_for_a_root() {
    let root = found(1);
    let worker = issued(&cluster(&root), NodeRole::Worker).chain_pem;
    let roots = trust(&root.cert_pem());
    let ders = pem::certificates(&worker).unwrap();
    let own = CertificateDer::from(ders[0].clone());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots.roots.clone(), provider).build().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_nanos(NOW.nanos()));
    let as_server = |server| verifier.verify_server_cert(&own, &[], &name(server), &[], at);
    assert!(as_server(MANAGER).is_err());
    assert!(as_server(WORKER).is_ok());
    assert!(verify(&ders, &root.cert_pem(), NOW).is_ok());

    // A node signs a certificate with its own key, as a root would.
    let node = Key::from_seed(&[9; 32]);
    let forger = Root::found(&[9; 32], NOW);
    assert_eq!(forger.signing_ca().key_pem, *node.to_pem());
    let forged = issued(&cluster(&forger), NodeRole::Manager).chain_pem + &worker;
    let forged = pem::certificates(&forged).unwrap();
    assert!(matches!(verify(&forged, &root.cert_pem(), NOW), Err(VerifyError::NotIssued { .. })));
}

#[test]
fn a_certificates_own_root_is_found_among_several() {
    let (old, next) = (found(1), found(2));
    let during = rotating(&cluster(&old), &next);
    let both = ca::roots_pem(&during);
    let under = |cluster: &RootCa, roots: &str| {
        issued_under(&issued(cluster, NodeRole::Worker).chain_pem, roots)
    };
    assert_eq!(under(&cluster(&old), &both), Some(old.digest_hex()));
    // The link to the old root does not count: the certificate itself is the next one's.
    assert_eq!(under(&during, &both), Some(next.digest_hex()));
    assert_eq!(under(&during, &old.cert_pem()), None);
    assert_eq!(issued_under("", &both), None);
}

#[test]
fn what_another_signer_made_must_be_what_was_asked_for() {
    let root = found(1);
    let key = Key::from_seed(&[9; 32]);
    let csr = Csr::parse(&request(&key)).unwrap();
    let asked =
        Identity { node_id: key.node_id(), role: NodeRole::Manager, cluster_id: "c1".into() };
    let chain = issued(&cluster(&root), NodeRole::Manager).chain_pem;
    let check = |chain: &str, csr: &Csr, asked: &Identity| {
        verify_issued(chain, &root.cert_pem(), csr, asked, NOW).map(drop)
    };
    assert_eq!(check(&chain, &csr, &asked), Ok(()));
    let other = Csr::parse(&request(&Key::from_seed(&[8; 32]))).unwrap();
    assert_eq!(check(&chain, &other, &asked), Err(VerifyError::OtherKey));
    for asked in [
        Identity { role: NodeRole::Worker, ..asked.clone() },
        Identity { node_id: "other".into(), ..asked.clone() },
        Identity { cluster_id: "c2".into(), ..asked.clone() },
    ] {
        assert_eq!(check(&chain, &csr, &asked), Err(VerifyError::OtherName));
    }
    let foreign = issued(&cluster(&found(2)), NodeRole::Manager).chain_pem;
    assert!(matches!(check(&foreign, &csr, &asked), Err(VerifyError::NotIssued { .. })));
    assert!(matches!(check("", &csr, &asked), Err(VerifyError::Certificate(_))));
}

#[test]
fn the_same_arguments_give_the_same_bytes() {
    let once = || {
        let during = rotating(&cluster(&found(1)), &found(2));
        (issued(&during, NodeRole::Worker), during)
    };
    assert_eq!(once(), once());
}
