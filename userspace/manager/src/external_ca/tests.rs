//! A real CFSSL where there is one, and a server that answers what no CFSSL would.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use shoal_api::NodeRole;
use shoal_identity::{Certificate, Key, Root, request, verify};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(now.as_nanos()).unwrap())
}

/// A cluster whose root's key an external CA holds, and one of its managers.
struct Cluster {
    root: Root,
    root_ca: RootCa,
    credentials: Credentials,
}

/// `node` asks for a certificate with its request.
fn node(seed: u8, role: NodeRole) -> (Key, Csr, Identity) {
    let key = Key::from_seed(&[seed; 32]);
    let csr = Csr::parse(&request(&key)).unwrap();
    let identity = Identity { node_id: key.node_id(), role, cluster_id: "cluster1".into() };
    (key, csr, identity)
}

impl Cluster {
    fn new() -> Self {
        let root = Root::found(&[1; 32], now());
        let signing = shoal_api::SigningCa { key_pem: String::new(), ..root.signing_ca() };
        let root_ca =
            RootCa { signing: Some(signing), digest: root.digest_hex(), ..RootCa::default() };
        let (key, csr, identity) = node(2, NodeRole::Manager);
        let chain = root.issue(&csr, &identity, now(), DAY, [1; 16], "");
        let credentials = Credentials::new(&chain, &key, &root.cert_pem()).unwrap();
        Self { root, root_ca, credentials }
    }

    /// Chain and key of a server that is reached as `name`.
    fn server(&self, name: &str) -> (String, Key) {
        let (key, csr, identity) = node(3, NodeRole::Worker);
        // A node's id is one of its certificate's names.
        let identity = Identity { node_id: name.into(), ..identity };
        (self.root.issue(&csr, &identity, now(), DAY, [2; 16], ""), key)
    }

    async fn sign(&self, url: &str) -> Result<IssuedCertificate, ExternalCaError> {
        let (_, csr, identity) = node(4, NodeRole::Manager);
        let signer = ExternalCa { url: url.to_owned(), cacert_pem: String::new() };
        sign(&[signer], &self.credentials, &self.root_ca, &csr, &identity, now()).await
    }
}

/// A server that answers every request with the same bytes, or never, and asks for a certificate of
/// the cluster.
async fn serves(cluster: &Cluster, answer: impl Into<Option<Vec<u8>>>) -> String {
    let answer = answer.into();
    let (chain, key) = cluster.server("localhost");
    let mut roots = rustls::RootCertStore::empty();
    let ders = |text: &str| {
        pem::certificates(text).unwrap().into_iter().map(CertificateDer::from).collect::<Vec<_>>()
    };
    roots.add(ders(&cluster.root.cert_pem()).remove(0)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8_der().to_vec()));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(ders(&chain), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut waiting = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut asked = Vec::new();
            // The body ends as its JSON does.
            while !asked.ends_with(b"}]}}") && stream.read_buf(&mut asked).await.unwrap_or(0) > 0 {}
            match &answer {
                Some(answer) => {
                    let _ = stream.write_all(answer).await;
                    let _ = stream.shutdown().await;
                }
                None => waiting.push(stream),
            }
        }
    });
    format!("https://localhost:{port}/api/v1/cfssl/sign")
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn signed(certificate: &str) -> Vec<u8> {
    let result = serde_json::json!({ "certificate": certificate });
    http("200 OK", &serde_json::json!({ "success": true, "result": result }).to_string())
}

#[tokio::test]
async fn a_certificate_of_the_cluster_is_taken_and_a_foreign_one_is_not() {
    let cluster = Cluster::new();
    let (_, csr, identity) = node(4, NodeRole::Manager);
    let issue = |root: &Root, csr: &Csr, identity: &Identity| {
        signed(&root.issue(csr, identity, now(), DAY, [3; 16], ""))
    };
    let url = serves(&cluster, issue(&cluster.root, &csr, &identity)).await;
    let issued = cluster.sign(&url).await.unwrap();
    assert_eq!(Certificate::from_pem(&issued.chain_pem).unwrap().identity, identity);
    assert_eq!(issued.roots_pem, cluster.root.cert_pem());
    assert_eq!(issued.role(), NodeRole::Manager);

    let worker = Identity { role: NodeRole::Worker, ..identity.clone() };
    let other = node(5, NodeRole::Manager).1;
    for (answer, expected) in [
        (issue(&Root::found(&[7; 32], now()), &csr, &identity), "not issued by this cluster"),
        (issue(&cluster.root, &csr, &worker), "does not name the node"),
        (issue(&cluster.root, &other, &identity), "not for the key"),
        (signed("hello"), "no certificate in PEM form"),
    ] {
        let url = serves(&cluster, answer).await;
        let error = cluster.sign(&url).await.unwrap_err().to_string();
        assert!(error.contains("cannot be used") && error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_cfssls_is_refused_with_its_reason() {
    let cluster = Cluster::new();
    let no =
        "{\"success\":false,\"result\":null,\"errors\":[{\"code\":1,\"message\":\"policy\\n1\"}]}";
    for (answer, expected) in [
        (http("400 Bad Request", no), "refused to sign: policy 1"),
        (http("200 OK", "<html>"), "did not answer as CFSSL does (HTTP status 200)"),
        (http("404 Not Found", "gone"), "did not answer as CFSSL does (HTTP status 404)"),
        (http("200 OK", &"x".repeat(MAX_ANSWER + 1)), "did not answer: length limit exceeded"),
        (b"hello\r\n\r\n".to_vec(), "did not answer: invalid HTTP"),
        (Vec::new(), "did not answer: "),
    ] {
        let url = serves(&cluster, answer).await;
        let error = cluster.sign(&url).await.unwrap_err().to_string();
        assert!(error.starts_with("external CA https://localhost:"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_signer_that_is_not_there_or_not_trusted_is_named() {
    let cluster = Cluster::new();
    let error = |url: String| {
        let cluster = &cluster;
        async move { cluster.sign(&url).await.unwrap_err().to_string() }
    };
    for url in ["", "http://localhost/", "https://", "https://user@localhost/", "ftp://x"] {
        let error = error(url.to_owned()).await;
        assert!(error.contains("is not of the form https://HOST[:PORT]/PATH"), "{error}");
    }
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refused = error(format!("https://{gone}/")).await;
    assert!(refused.contains("cannot be reached"), "{refused}");
    // Its certificate is of another root than the one that is named for it.
    let url = serves(&cluster, Vec::new()).await;
    let cacert_pem = Root::found(&[8; 32], now()).cert_pem();
    let signer = ExternalCa { url, cacert_pem };
    let (_, csr, identity) = node(4, NodeRole::Manager);
    let foreign =
        sign(&[signer], &cluster.credentials, &cluster.root_ca, &csr, &identity, now()).await;
    assert!(matches!(foreign, Err(ExternalCaError::Unreachable { .. })), "{foreign:?}");
}

#[tokio::test]
async fn a_silent_signer_is_given_up_and_the_next_one_is_asked() {
    let cluster = Cluster::new();
    let (_, csr, identity) = node(4, NodeRole::Worker);
    let silent = serves(&cluster, None).await;
    let chain = cluster.root.issue(&csr, &identity, now(), DAY, [3; 16], "");
    let good = serves(&cluster, signed(&chain)).await;
    let signers = [&silent, &good].map(|url| ExternalCa { url: url.clone(), ..Default::default() });
    let ask = |signers| {
        let Cluster { credentials, root_ca, .. } = &cluster;
        sign(signers, credentials, root_ca, &csr, &identity, now())
    };
    let (lone, issued) = tokio::join!(ask(&signers[..1]), ask(&signers));
    let lone = lone.unwrap_err().to_string();
    assert!(lone.ends_with("did not answer within 5 s"), "{lone}");
    let issued = issued.unwrap();
    assert_eq!(Certificate::from_pem(&issued.chain_pem).unwrap().identity, identity);
    assert!(matches!(ask(&[]).await, Err(ExternalCaError::None)));
}

#[tokio::test]
async fn during_a_roll_over_the_next_root_must_sign_and_the_link_is_added() {
    let mut cluster = Cluster::new();
    let next = Root::found(&[9; 32], now());
    let holder = RootCa { signing: Some(cluster.root.signing_ca()), ..cluster.root_ca.clone() };
    let keyless = shoal_api::SigningCa { key_pem: String::new(), ..next.signing_ca() };
    cluster.root_ca.rotation = Some(ca::rotation(&holder, &keyless, now(), [4; 16]).unwrap());
    let (_, csr, identity) = node(4, NodeRole::Manager);
    let by = |root: &Root| signed(&root.issue(&csr, &identity, now(), DAY, [3; 16], ""));

    let url = serves(&cluster, by(&next)).await;
    let issued = cluster.sign(&url).await.unwrap();
    let chain = pem::certificates(&issued.chain_pem).unwrap();
    assert!(verify(&chain, &cluster.root.cert_pem(), now()).is_ok(), "the old root is enough");
    let url = serves(&cluster, by(&cluster.root)).await;
    assert!(cluster.sign(&url).await.is_err(), "the old root's signature comes too late");
}

/// A CFSSL of its own; ends with the test.
struct Cfssl(Child);

impl Drop for Cfssl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_real_cfssl_signs_for_a_manager_and_for_nobody_else() {
    if Command::new("cfssl").arg("version").output().is_err() {
        println!("SKIPPED: needs cfssl (Debian's golang-cfssl)");
        return;
    }
    let cluster = Cluster::new();
    let folder = tempfile::Builder::new().prefix("shoal-cfssl-").tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (chain, key) = cluster.server("localhost");
    let usages = ["digital signature", "server auth", "client auth"];
    let policy = serde_json::json!({
        "signing": { "default": { "expiry": "48h", "usages": usages } }
    });
    let root = file("root.pem", &cluster.root.cert_pem());
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut command = Command::new("cfssl");
    command.args(["serve", "-address=127.0.0.1", "-loglevel=5", &format!("-port={port}")]);
    for (flag, path) in [
        ("-ca", &root),
        ("-ca-key", &file("root.key", &cluster.root.signing_ca().key_pem)),
        ("-config", &file("policy.json", &policy.to_string())),
        ("-tls-cert", &file("server.pem", &chain)),
        ("-tls-key", &file("server.key", &key.to_pem())),
        ("-mutual-tls-ca", &root),
    ] {
        command.arg(flag).arg(path);
    }
    command.args(["-mutual-tls-cn", &cluster.credentials.identity().node_id]);
    let command = command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let _cfssl = Cfssl(command.spawn().unwrap());

    let url = format!("https://localhost:{port}/api/v1/cfssl/sign");
    let deadline = Instant::now() + Duration::from_secs(20);
    let issued = loop {
        match cluster.sign(&url).await {
            Ok(issued) => break issued,
            Err(ExternalCaError::Unreachable { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    let (_, _, identity) = node(4, NodeRole::Manager);
    let certificate = Certificate::from_pem(&issued.chain_pem).unwrap();
    assert_eq!(certificate.identity, identity);
    let left = certificate.not_after.since(now());
    assert!(DAY < left && left <= 2 * DAY, "its own policy says how long: {left:?}");

    // It knows us by our certificate: another node's gets nothing.
    let (key, csr, identity) = node(6, NodeRole::Worker);
    let chain = cluster.root.issue(&csr, &identity, now(), DAY, [6; 16], "");
    let credentials = Credentials::new(&chain, &key, &cluster.root.cert_pem()).unwrap();
    let other = Cluster { credentials, ..cluster };
    let error = other.sign(&url).await.unwrap_err().to_string();
    assert!(error.contains("(HTTP status 403)"), "{error}");
}
