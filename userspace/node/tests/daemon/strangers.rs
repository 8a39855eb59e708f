//! Who is not let in, and what it hears: one sentence, and nothing stays of the try.

use std::process::Stdio;

use shoal_api::SigningCa;
use shoal_api::time::Timestamp;
use shoal_identity::{JoinToken, Root};

use crate::hosts::{Hosts, can_run, until};

/// A minute in seconds is enough for a name; a day in nanoseconds for a clock.
const DAY_NS: u64 = 86_400_000_000_000;

#[test]
fn a_wrong_token_is_one_sentence_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    hosts.start('b');
    hosts.ok('a', &["init"]);
    let old = hosts.token('a', "worker");
    let refused = |token: &str, expected: &str| {
        let said = hosts.fails('b', &["join", "--token", token, "10.77.0.1"]);
        assert!(said.contains(expected), "{token}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains(token), "a token is a secret: {said}");
        hosts.assert_untouched('b');
    };
    refused("SWMTKN-1-nonsense", "invalid join token");
    let foreign = JoinToken::new(&[7; 32], &[9; 16]).to_string();
    refused(&foreign, "remote CA does not match fingerprint. Expected: 0707");
    let digest = JoinToken::parse(&old).unwrap().root_digest;
    let guessed = JoinToken::new(&digest, &[9; 16]).to_string();
    refused(&guessed, "invalid join token");

    hosts.ok('a', &["join-token", "--rotate", "worker"]);
    refused(&old, "invalid join token");
    let new = hosts.token('a', "worker");
    assert_ne!(new, old);
    hosts.ok('b', &["join", "--token", &new, "10.77.0.1:2377"]);
    hosts.until_ready(2);
    assert!(hosts.fails('b', &["join", "--token", &new, "10.77.0.1"]).contains("shoal leave"));
}

#[test]
fn what_is_no_manager_is_not_joined() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('b');
    let token = JoinToken::new(&[7; 32], &[9; 16]).to_string();
    let web = hosts.command('a', &["responder", "--port", "9999"]).stdin(Stdio::null()).spawn();
    let mut web = web.unwrap();
    until("the web server answers", || hosts.get('b', "10.77.0.1:9999").ok());
    let said = hosts.fails('b', &["join", "--token", &token, "10.77.0.1:9999"]);
    web.kill().unwrap();
    web.wait().unwrap();
    assert!(said.contains("10.77.0.1:9999"), "{said}");
    // A web server does not take our greeting for a request; some say so, some hang up.
    let hangs_up = said.contains("closed the connection");
    assert!(hangs_up || said.contains("is not a Shoal manager"), "{said}");
    hosts.assert_untouched('b');

    let said = hosts.fails('b', &["join", "--token", &token, "10.77.0.1:9999,10.77.0.1:9998"]);
    assert!(said.contains("no manager answered: "), "{said}");
    assert!(said.contains("10.77.0.1:9999") && said.contains("10.77.0.1:9998"), "{said}");
    assert!(said.contains("Connection refused"), "{said}");
    hosts.assert_untouched('b');
}

#[test]
fn an_operators_root_is_used_or_refused_with_its_reason() {
    if !can_run() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.start('a');
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_nanos()).unwrap();
    let files = |name: &str, root: &Root, key: &Root| {
        let cert = hosts.dir.path().join(format!("{name}.crt"));
        let SigningCa { cert_pem, .. } = root.signing_ca();
        std::fs::write(&cert, cert_pem).unwrap();
        let file = hosts.dir.path().join(format!("{name}.key"));
        std::fs::write(&file, key.signing_ca().key_pem).unwrap();
        (cert.to_str().unwrap().to_owned(), file.to_str().unwrap().to_owned())
    };
    let root = |seed: u8, at: u64| Root::found(&[seed; 32], Timestamp(at));
    let refused = |(cert, key): (String, String), expected: &str| {
        let said = hosts.fails('a', &["init", "--ca-cert", &cert, "--ca-key", &key]);
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        hosts.assert_untouched('a');
    };
    let (good, other) = (root(1, now), root(2, now));
    // A clock that is off: valid for twenty years that are over, or have not begun.
    let over = root(3, now - 21 * 365 * DAY_NS);
    refused(files("over", &over, &over), "expired");
    let ahead = root(4, now + 30 * DAY_NS);
    refused(files("ahead", &ahead, &ahead), "not valid");
    refused(files("mixed", &good, &other), "key");

    let (cert, key) = files("good", &good, &good);
    hosts.ok('a', &["init", "--ca-cert", &cert, "--ca-key", &key]);
    let token = JoinToken::parse(&hosts.token('a', "worker")).unwrap();
    assert_eq!(token.root_digest, good.digest());
}
