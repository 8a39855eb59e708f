//! Roots that an operator gives, as OpenSSL writes them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use shoal_api::time::Timestamp;
use shoal_api::{NodeRole, RootCa, SigningCa};
use shoal_identity::{
    CaError, Csr, CsrError, Identity, Key, KeyError, Root, RootCertificate, ca, pem, request,
    verify,
};

/// 2027, when all of the files are valid.
const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

macro_rules! root {
    ($cert:literal, $key:literal) => {
        SigningCa {
            cert_pem: include_str!(concat!("roots/", $cert, ".crt")).to_owned(),
            key_pem: include_str!(concat!("roots/", $key, ".key")).to_owned(),
        }
    };
}

fn keyless(cert_pem: &str) -> SigningCa {
    SigningCa { cert_pem: cert_pem.to_owned(), key_pem: String::new() }
}

fn node() -> (Csr, Identity) {
    let key = Key::from_seed(&[3; 32]);
    let identity =
        Identity { node_id: key.node_id(), role: NodeRole::Worker, cluster_id: "c1".into() };
    (Csr::parse(&request(&key)).unwrap(), identity)
}

/// A node's certificate of this root is believed by whoever has the root.
fn check_issues(given: &SigningCa) {
    let root = Root::open(given, NOW).unwrap();
    let (csr, identity) = node();
    let chain = root.issue(&csr, &identity, NOW, DAY, [1; 16], "");
    let chain = pem::certificates(&chain).unwrap();
    let read = verify(&chain, &given.cert_pem, NOW).unwrap();
    assert_eq!(read.identity, identity);
    assert_eq!(Root::open(&root.signing_ca(), NOW).unwrap().digest(), root.digest());
}

fn check_refused(given: &SigningCa, why: &CaError) {
    assert_eq!(&Root::open(given, NOW).unwrap_err(), why);
}

#[test]
fn a_root_with_a_long_name_and_a_sec1_key_issues_certificates() {
    check_issues(&root!("sec1", "sec1"));
}

#[test]
fn a_root_without_key_identifier_issues_certificates() {
    check_issues(&root!("pkcs8", "pkcs8"));
}

#[test]
fn a_root_that_another_authority_signed_issues_certificates() {
    check_issues(&root!("intermediate", "intermediate"));
}

#[test]
fn text_around_a_root_does_not_change_its_digest() {
    let plain = root!("pkcs8", "pkcs8");
    let mut given = plain.clone();
    given.cert_pem = format!("Subject: swarm-ca\r\n\r\n{}\n\n", given.cert_pem);
    let digest = |ca| Root::open(&ca, NOW).unwrap().digest_hex();
    assert_eq!(digest(given), digest(plain));
}

#[test]
fn a_key_of_another_root_is_refused() {
    check_refused(&root!("pkcs8", "sec1"), &CaError::KeyMismatch);
}

#[test]
fn an_encrypted_key_is_refused() {
    check_refused(&root!("pkcs8", "encrypted"), &CaError::Key(KeyError::Unsupported));
}

#[test]
fn keys_of_other_kinds_are_refused() {
    check_refused(&root!("rsa", "rsa"), &CaError::Key(KeyError::Unsupported));
    check_refused(&root!("p384", "p384"), &CaError::Key(KeyError::Unsupported));
    check_refused(&root!("p384", "sec1"), &CaError::Algorithm);
}

#[test]
fn a_root_without_its_key_cannot_sign_but_is_a_root() {
    let given = keyless(include_str!("roots/rsa.crt"));
    check_refused(&given, &CaError::NoKey);
    assert!(ca::check(&given, NOW).is_ok());
}

#[test]
fn a_certificate_that_may_not_sign_is_refused() {
    for cert in [include_str!("roots/leaf.crt"), include_str!("roots/nosign.crt")] {
        check_refused(&keyless(cert), &CaError::NotAuthority);
    }
    check_refused(&keyless(include_str!("roots/constrained.crt")), &CaError::Constrained);
}

#[test]
fn no_certificate_several_and_garbage_are_refused() {
    let several = [include_str!("roots/rsa.crt"), include_str!("roots/p384.crt")].concat();
    check_refused(&keyless(&several), &CaError::Several { count: 2 });
    let broken = include_str!("roots/rsa.crt").replace("MII", "AAA");
    for text in ["", "hello", include_str!("roots/sec1.key"), &broken] {
        check_refused(&keyless(text), &CaError::Unreadable);
    }
    let bare = SigningCa { key_pem: "hello".into(), ..root!("pkcs8", "pkcs8") };
    check_refused(&bare, &CaError::Key(KeyError::Unreadable));
}

#[test]
fn a_root_is_refused_after_its_end_and_before_its_beginning() {
    let root = Root::found(&[1; 32], NOW);
    let at = |now| Root::open(&root.signing_ca(), now).map(drop);
    assert_eq!(at(NOW), Ok(()));
    assert_eq!(at(NOW - Duration::from_secs(60 * 60)), Ok(()));
    assert_eq!(at(NOW - DAY), Err(CaError::NotYet { at: "2027-01-15T07:00:00Z".into() }));
    let end = NOW + DAY * 20 * 365;
    assert_eq!(at(end), Ok(()));
    assert_eq!(at(end + DAY), Err(CaError::Expired { at: "2047-01-10T08:00:00Z".into() }));
}

#[test]
fn a_certificate_never_outlives_its_root() {
    let root = Root::found(&[1; 32], NOW);
    let (csr, identity) = node();
    let late = NOW + DAY * (20 * 365 - 1);
    let chain = root.issue(&csr, &identity, late, DAY * 90, [1; 16], "");
    let certificate = shoal_identity::Certificate::from_pem(&chain).unwrap();
    assert_eq!(certificate.not_after, late + DAY);
}

#[test]
fn requests_of_other_kinds_are_refused_and_names_in_them_do_not_count() {
    let read = |der: &[u8]| Csr::parse(der).map(|csr| csr.public_der().to_vec());
    let key = Key::from_pem(include_str!("roots/sec1.key")).unwrap();
    assert_eq!(read(include_bytes!("roots/request.der")), Ok(key.public_der()));
    let refused = Err(CsrError::Algorithm);
    assert_eq!(read(include_bytes!("roots/request-p384.der")), refused);
    assert_eq!(read(include_bytes!("roots/request-rsa.der")), refused);
}

#[test]
fn a_roll_over_to_a_root_without_key_has_its_link() {
    let old = Root::found(&[1; 32], NOW);
    let cluster =
        RootCa { signing: Some(old.signing_ca()), digest: old.digest_hex(), ..RootCa::default() };
    for next in [include_str!("roots/rsa.crt"), include_str!("roots/p384.crt")] {
        let rotation = ca::rotation(&cluster, &keyless(next), NOW, [5; 16]).unwrap();
        let digest = RootCertificate::parse(next, NOW).unwrap().digest_hex();
        assert_eq!(rotation.digest, digest);
        let cluster = RootCa { rotation: Some(rotation), ..cluster.clone() };
        let (csr, identity) = node();
        let issued = ca::issue_for(&cluster, DAY, &csr, &identity, NOW, [6; 16]);
        assert_eq!(issued, Err(CaError::NoKey));
        assert_eq!(ca::issuer_digest(&cluster), digest);
    }
}

#[test]
fn the_root_in_use_needs_no_link_whether_its_key_comes_or_goes() {
    let root = Root::found(&[1; 32], NOW);
    for (held, given) in [(true, true), (true, false), (false, true), (false, false)] {
        let with = |key: bool| if key { root.signing_ca() } else { keyless(&root.cert_pem()) };
        let digest = root.digest_hex();
        let cluster = RootCa { signing: Some(with(held)), digest, ..RootCa::default() };
        let rotation = ca::rotation(&cluster, &with(given), NOW, [5; 16]).unwrap();
        assert_eq!((rotation.digest, rotation.next), (cluster.digest, Some(with(given))));
        assert_eq!(rotation.cross_signed_pem, "");
    }
    let wrong =
        SigningCa { key_pem: Key::from_seed(&[9; 32]).to_pem().to_string(), ..root.signing_ca() };
    let cluster = RootCa { digest: root.digest_hex(), ..RootCa::default() };
    assert_eq!(ca::rotation(&cluster, &wrong, NOW, [5; 16]), Err(CaError::KeyMismatch));
}

#[test]
fn only_the_external_authority_can_link_from_a_root_whose_key_it_has() {
    let cluster =
        RootCa { signing: Some(keyless(include_str!("roots/rsa.crt"))), ..RootCa::default() };
    let next = Root::found(&[2; 32], NOW).signing_ca();
    assert_eq!(ca::rotation(&cluster, &next, NOW, [5; 16]), Err(CaError::Unlinked));
    let next = keyless(include_str!("roots/p384.crt"));
    assert_eq!(ca::rotation(&cluster, &next, NOW, [5; 16]), Err(CaError::BothExternal));
}
