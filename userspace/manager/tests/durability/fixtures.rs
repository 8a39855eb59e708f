//! Bytes of each release, kept: this release reads them, starts a manager from them and goes on.
//!
//! `SHOAL_BLESS=1 cargo nextest run -p shoal-manager bytes_of_every_release` writes those of this
//! release anew; to be done once for each, before it is tagged, and never again. Raft's messages are
//! beside them, made by `src/types.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::TryStreamExt;
use shoal_api::{IssuedCertificate, NodeRole, SigningCa};
use shoal_identity::{BackupKey, Csr, Identity, Root, csr};
use shoal_manager::backup::{self, NodeFiles};
use shoal_manager::{Manager, NewCluster, Timings};
use tokio::net::TcpListener;

use crate::harness::{Host, eventually, now};

/// Releases whose bytes are kept.
const RELEASES: [&str; 1] = ["0.1"];
/// What lies in a manager's folder, and in the fixture.
const FILES: [&str; 4] = ["vault", "manager", "raft.redb", "snapshot"];
const SERVICES: usize = 25;

fn fixture(release: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(release)
}

fn key() -> BackupKey {
    BackupKey::from_bytes([21; 32])
}

fn names() -> Vec<String> {
    (0..SERVICES).map(|number| format!("web{number:02}")).collect()
}

/// The same node in every run.
async fn host() -> (Host, TcpListener) {
    // Both a snapshot and a log behind it.
    let timings = Timings { snapshot_after: 10, kept_entries: 2, ..Timings::default() };
    Host::new(42, &timings).await
}

/// Writes this release's bytes.
async fn bless() {
    let folder = fixture(RELEASES[RELEASES.len() - 1]);
    fs::create_dir_all(&folder).unwrap();
    let (mut host, listener) = host().await;
    let root = Root::found(&[1; 32], now()).signing_ca();
    let new = NewCluster { root: Some(root.clone()), ..NewCluster::default() };
    let founding = host.founding(new);
    fs::write(folder.join("cluster-id"), founding.cluster_id()).unwrap();
    fs::write(folder.join("root.pem"), &root.cert_pem).unwrap();
    fs::write(folder.join("root.key"), &root.key_pem).unwrap();
    host.run(Manager::init(host.config(), founding), listener).await;
    for name in names() {
        host.create(&name).await.unwrap();
    }
    let snapshot = host.state_dir().join("snapshot");
    eventually("there is a snapshot", || async { snapshot.exists().then_some(()) }).await;
    let files = NodeFiles { record: b"{}".to_vec(), ..NodeFiles::default() };
    let pieces = host.manager().backup(key(), files).await.unwrap();
    let whole: Vec<u8> = pieces.try_concat().await.unwrap();
    fs::write(folder.join("backup"), whole).unwrap();
    host.stop().await;
    for name in FILES {
        fs::copy(host.state_dir().join(name), folder.join(name)).unwrap();
    }
}

/// A host on a copy of the fixture, with a certificate of today.
async fn from_fixture(folder: &Path) -> (Host, TcpListener) {
    let (mut host, listener) = host().await;
    fs::create_dir_all(host.state_dir()).unwrap();
    for name in FILES {
        fs::copy(folder.join(name), host.state_dir().join(name)).unwrap();
    }
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let ca = SigningCa { cert_pem: read("root.pem"), key_pem: read("root.key") };
    let root = Root::open(&ca, now()).unwrap();
    let member = &mut host.member;
    let identity = Identity {
        node_id: member.node_id.clone(),
        role: NodeRole::Manager,
        cluster_id: read("cluster-id"),
    };
    let request = Csr::parse(&csr::request(&member.key)).unwrap();
    let life = Duration::from_secs(24 * 60 * 60);
    let chain_pem = root.issue(&request, &identity, now(), life, [1; 16], "");
    let issued =
        IssuedCertificate { chain_pem, roots_pem: ca.cert_pem, ..IssuedCertificate::default() };
    let key = member.key.clone();
    member.take(&issued, &key);
    (host, listener)
}

async fn serves(host: &Host) {
    eventually("it leads and writes", || async { host.create("zzz").await.ok() }).await;
    let mut wanted = names();
    wanted.push("zzz".into());
    assert_eq!(host.services().await.unwrap(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_every_release_start_a_manager_that_goes_on() {
    if std::env::var_os("SHOAL_BLESS").is_some() {
        bless().await;
    }
    for release in RELEASES {
        let folder = fixture(release);
        let (mut host, listener) = from_fixture(&folder).await;
        host.run(Manager::restart(host.config()), listener).await;
        serves(&host).await;
        host.stop().await;

        let (mut host, listener) = from_fixture(&folder).await;
        fs::remove_dir_all(host.state_dir()).unwrap();
        let bytes = fs::read(folder.join("backup")).unwrap();
        let restored = backup::open(bytes.as_slice(), &key()).unwrap();
        assert_eq!(restored.node_id(), host.node_id);
        let vault = restored.write(&host.state_dir()).unwrap();
        let config = host.config_with(vault);
        host.run(Manager::force_new_cluster(config, host.join_request()), listener).await;
        serves(&host).await;
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_newer_release_is_named_and_left_alone() {
    let folder = fixture(RELEASES[0]);
    for (name, version) in [("vault", 8), ("snapshot", 8), ("manager", 8)] {
        let (host, _listener) = from_fixture(&folder).await;
        let path = host.state_dir().join(name);
        let mut bytes = fs::read(&path).unwrap();
        // `version=1` and little-endian words both have their low byte there.
        bytes[version] += 7;
        fs::write(&path, &bytes).unwrap();
        let refused = host.refusal().await;
        let sentence = format!("{} is of version 8, this release reads 1", path.display());
        assert_eq!(refused, sentence);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}
