//! What must hold for any text and any bytes: nothing panics, and what was written is read.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use proptest::prelude::*;
use shoal_api::SigningCa;
use shoal_api::time::Timestamp;
use shoal_identity::{
    BackupKey, Certificate, Csr, JoinToken, Key, Root, RootCertificate, StreamOpener, UnlockKey,
    open, pem, request, seal, verify,
};

/// Text that is nearly right is more telling than noise.
fn near(good: &str) -> impl Strategy<Value = String> + use<> {
    let good = good.to_owned();
    (0..good.len(), 0..good.len(), "\\PC{0,4}").prop_map(move |(from, to, put)| {
        let (from, to) = (from.min(to), from.max(to));
        let cut = |at| (0..=at).rev().find(|at| good.is_char_boundary(*at)).unwrap_or(0);
        format!("{}{put}{}", &good[..cut(from)], &good[cut(to)..])
    })
}

/// Bytes with a part taken out and another put in.
fn near_bytes(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    let put = prop::collection::vec(any::<u8>(), 0..4);
    (0..length, 0..8_usize, put).prop_map(move |(from, gone, put)| {
        let to = (from + gone).min(good.len());
        [&good[..from], &put, &good[to..]].concat()
    })
}

proptest! {
    #[test]
    fn a_token_is_read_as_it_was_written(digest: [u8; 32], secret: [u8; 16]) {
        let token = JoinToken::new(&digest, &secret);
        let read = JoinToken::parse(&token.to_string()).unwrap();
        prop_assert_eq!(read.root_digest, digest);
        prop_assert_eq!(read.secret(), token.secret());
    }

    #[test]
    fn a_token_that_is_read_is_written_the_same(text in near(
        &JoinToken::new(&[7; 32], &[8; 16]).to_string(),
    )) {
        if let Ok(token) = JoinToken::parse(&text) {
            prop_assert_eq!(token.to_string(), text);
        }
    }

    #[test]
    fn keys_are_read_as_they_were_written(bytes: [u8; 32]) {
        let unlock = UnlockKey::from_bytes(bytes);
        prop_assert_eq!(UnlockKey::parse(&unlock.to_string()), Ok(unlock));
        let backup = BackupKey::from_bytes(bytes);
        prop_assert_eq!(BackupKey::parse(&backup.to_string()), Ok(backup));
    }

    #[test]
    fn any_text_is_refused_or_read_without_a_panic(text in "\\PC{0,200}") {
        let _ = JoinToken::parse(&text);
        let _ = UnlockKey::parse(&text);
        let _ = Key::from_pem(&text);
        let _ = Certificate::from_pem(&text);
        let _ = pem::certificates(&text);
        let now = Timestamp(1_800_000_000_000_000_000);
        let _ = RootCertificate::parse(&text, now);
        let _ = Root::open(&SigningCa { cert_pem: text.clone(), key_pem: text }, now);
    }

    #[test]
    fn a_request_of_changed_bytes_is_refused(
        der in near_bytes(request(&Key::from_seed(&[1; 32]))),
    ) {
        if let Ok(csr) = Csr::parse(&der) {
            prop_assert_eq!(csr.der(), request(&Key::from_seed(&[1; 32])));
        }
    }

    #[test]
    fn a_certificate_of_changed_bytes_is_not_believed(
        der in near_bytes(pem::certificates(
            include_str!("roots/sec1.crt")).unwrap().remove(0)),
    ) {
        let _ = Certificate::from_der(&der);
        let good = include_str!("roots/sec1.crt");
        let now = Timestamp(1_800_000_000_000_000_000);
        prop_assert!(verify(&[der], good, now).is_err());
    }

    #[test]
    fn what_was_sealed_is_opened_and_nothing_else(
        key: [u8; 32], nonce: [u8; 24], context: Vec<u8>, other: Vec<u8>, plain: Vec<u8>,
    ) {
        let sealed = seal(&key, nonce, &context, &plain);
        prop_assert_eq!(&**open(&key, &context, &sealed).unwrap(), &plain);
        prop_assert_eq!(open(&key, &other, &sealed).is_ok(), other == context);
    }

    #[test]
    fn any_bytes_are_refused_as_a_stream(bytes: Vec<u8>) {
        let mut opener = StreamOpener::new(&[1; 32], b"kind");
        let mut out = Vec::new();
        prop_assert!(opener.push(&bytes, &mut out).is_err() || opener.finish(&mut out).is_err());
        prop_assert!(out.is_empty());
    }
}
