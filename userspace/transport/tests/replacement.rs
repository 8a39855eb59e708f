//! Certificates and roots that change while they are used.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Cluster, Server, eventually, key, patient, seen};
use futures::StreamExt;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use shoal_api::NodeRole;
use shoal_transport::{Accepting, Credentials, DialError, Incoming, Refusal, Stale, accept};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_under_running_calls_and_none_fails() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let client = cluster.worker();
    let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8 {
        let (client, addr) = (client.clone(), server.addr.clone());
        let (over, calls) = (Arc::clone(&over), Arc::clone(&calls));
        callers.spawn(async move {
            let first = shoal_transport::connect(&client, &addr, &patient()).await.unwrap();
            let shown = seen(&first).await.unwrap();
            while !over.load(Ordering::Relaxed) {
                // Half of them come anew each time.
                if caller % 2 == 0 {
                    let new = shoal_transport::connect(&client, &addr, &patient()).await.unwrap();
                    seen(&new).await.unwrap();
                } else {
                    assert_eq!(seen(&first).await.unwrap(), shown);
                }
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut changes = client.changes();
    for round in 0..20 {
        let before = calls.load(Ordering::Relaxed);
        // Renewed with the same key and with a new one.
        let (own, other) = (key(100 + round), key(1));
        let identity = client.identity();
        client.replace(&chain(&cluster, &own, &identity), &own, &cluster.roots_pem()).unwrap();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let served = chain(&cluster, &other, &server.credentials.identity());
        server.credentials.replace(&served, &other, &cluster.roots_pem()).unwrap();
        let expected = shoal_identity::digest_hex(&client.certificate().der);
        assert_eq!(server.asked_by(&client).await.unwrap().certificate, expected);
        eventually("calls go on", || (calls.load(Ordering::Relaxed) > before + 8).then_some(()))
            .await;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    eprintln!("{} calls over 20 replacements", calls.load(Ordering::Relaxed));
}

fn chain(
    cluster: &Cluster,
    key: &shoal_identity::Key,
    identity: &shoal_identity::Identity,
) -> String {
    cluster.chain_at(key, identity, common::now())
}

/// A connection as the server has it, whose client says no more than its handshake.
async fn come(port: &mut Accepting, credentials: &Credentials) -> Incoming {
    let (credentials, addr) = (credentials.clone(), port.local_addr().unwrap().to_string());
    let dial = tokio::spawn(async move {
        // It waits for the server's first words.
        drop(shoal_transport::connect(&credentials, &addr, &patient()).await);
    });
    let incoming = tokio::time::timeout(patient().handshake_timeout, port.next()).await;
    let incoming = incoming.expect("the handshake succeeds").unwrap().unwrap();
    dial.abort();
    incoming
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_good_as_long_as_its_certificate_and_the_root_behind_it() {
    let mut cluster = Cluster::found("alpha");
    let server = cluster.manager();
    let mut port = accept(TcpListener::bind("127.0.0.1:0").await.unwrap(), &server);
    let before = come(&mut port, &cluster.worker()).await;
    assert_eq!(before.peer().still_passes(&server), Ok(()));
    cluster.rotate();
    // One that was renewed before the server heard of the next root: the link leads to the old one.
    let renewed = come(&mut port, &cluster.worker()).await;
    let served = cluster.chain(&key(1), NodeRole::Manager);
    server.replace(&served, &key(1), &cluster.roots_pem()).unwrap();
    for incoming in [&before, &renewed] {
        assert_eq!(incoming.peer().still_passes(&server), Ok(()), "both roots are trusted");
    }
    cluster.rotated();
    server.trust(&cluster.roots_pem()).unwrap();
    assert_eq!(before.peer().still_passes(&server), Err(Stale::Untrusted));
    assert_eq!(renewed.peer().still_passes(&server), Ok(()));

    let (key, almost) = (key(2), Duration::from_secs(3));
    let identity = cluster.identity(&key, NodeRole::Worker);
    let chain = cluster.chain_at(&key, &identity, common::now() - common::DAY + almost);
    let short = Credentials::new(&chain, &key, &cluster.roots_pem()).unwrap();
    let short = come(&mut port, &short).await;
    assert_eq!(short.peer().still_passes(&server), Ok(()));
    let ended = eventually("it expires", || short.peer().still_passes(&server).err()).await;
    assert_eq!(ended, Stale::Expired);
}

#[tokio::test]
async fn a_root_that_is_no_longer_trusted_opens_no_new_connection() {
    let (cluster, other) = (Cluster::found("alpha"), Cluster::found("beta"));
    let server = Server::start(cluster.manager()).await;
    let client = cluster.worker();
    let open = shoal_transport::connect(&client, &server.addr, &patient()).await.unwrap();
    seen(&open).await.unwrap();

    server.credentials.trust(&other.roots_pem()).unwrap();
    let error = server.asked_by(&client).await.unwrap_err();
    let expected = DialError::Refused { addr: server.addr.clone(), reason: Refusal::Root };
    assert_eq!(error, expected);
    // What is open goes on, as after a roll-over.
    seen(&open).await.unwrap();

    client.trust(&other.roots_pem()).unwrap();
    assert!(matches!(server.asked_by(&client).await, Err(DialError::Foreign { .. })));
}

#[tokio::test]
async fn a_roll_over_of_the_root_cuts_nobody_off_in_any_order() {
    let mut cluster = Cluster::found("alpha");
    let old_roots = cluster.roots_pem();
    let old = |number, role| (cluster.chain(&key(number), role), old_roots.clone());
    let mut managers = vec![old(1, NodeRole::Manager)];
    let mut workers = vec![old(2, NodeRole::Worker)];
    cluster.rotate();
    let both = cluster.roots_pem();
    let next_root = cluster.next.as_ref().unwrap().cert_pem();
    // Each node learns of the new root, renews, and forgets the old one in its own time.
    for (list, number, role) in
        [(&mut managers, 1, NodeRole::Manager), (&mut workers, 2, NodeRole::Worker)]
    {
        let renewed = cluster.chain(&key(number), role);
        list.push((list[0].0.clone(), both.clone()));
        list.push((renewed.clone(), old_roots.clone()));
        list.push((renewed.clone(), both.clone()));
        list.push((renewed, next_root.clone()));
    }
    let last = managers.len() - 1;
    for (served, (chain, roots)) in managers.iter().enumerate() {
        let server = Server::start(Credentials::new(chain, &key(1), roots).unwrap()).await;
        for (asked, (chain, roots)) in workers.iter().enumerate() {
            // The old root is forgotten when nobody uses it any more.
            if (served == last && asked < 2) || (asked == last && served < 2) {
                continue;
            }
            let client = Credentials::new(chain, &key(2), roots).unwrap();
            let seen = server.asked_by(&client).await;
            assert!(seen.is_ok(), "{served} {asked}: {seen:?}");
        }
    }
    let digests = [&old_roots, &next_root].map(|root| {
        shoal_identity::digest_hex(&CertificateDer::from_pem_slice(root.as_bytes()).unwrap())
    });
    for (which, (chain, roots)) in workers.iter().enumerate() {
        let issuer = Credentials::new(chain, &key(2), roots).unwrap().issuer_digest();
        let expected = match which {
            0 | 1 => digests[0].as_str(),
            // It does not know the root yet.
            2 => "",
            _ => digests[1].as_str(),
        };
        assert_eq!(issuer, expected, "{which}");
    }
}

#[tokio::test]
async fn every_handshake_is_a_full_one() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.roots_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    for _ in 0..3 {
        let tcp = TcpStream::connect(&server.addr).await.unwrap();
        let name = ServerName::try_from("swarm-manager").unwrap();
        let mut tls = connector.connect(name, tcp).await.unwrap();
        // A ticket would come before the first bytes.
        assert!(tls.read(&mut [0; 64]).await.unwrap() > 0);
        let session = tls.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        tls.shutdown().await.unwrap();
    }
}
