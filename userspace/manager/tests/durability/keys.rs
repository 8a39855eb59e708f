//! What lies on the disk is sealed, and the unlock key decides who may open it.

use std::fs;

use shoal_api::{Cluster as Object, ClusterSpec, GetUnlockKeyRequest, UpdateClusterRequest};
use shoal_identity::UnlockKey;
use shoal_manager::{Manager, NewCluster, Vault, VaultError, vault_is_locked};

use crate::harness::{Cluster, Host, eventually};

pub async fn update(host: &Host, change: impl Fn(&mut UpdateClusterRequest)) -> Object {
    eventually("the cluster is updated", || async {
        let cluster = host.cluster().await;
        let mut request = UpdateClusterRequest {
            version: cluster.meta.map_or(0, |meta| meta.version),
            spec: cluster.spec,
            ..UpdateClusterRequest::default()
        };
        change(&mut request);
        host.control().update_cluster(request).await.ok()?.into_inner().cluster
    })
    .await
}

pub async fn unlock_key(host: &Host) -> Option<UnlockKey> {
    let response = host.control().get_unlock_key(GetUnlockKeyRequest {}).await.unwrap();
    UnlockKey::parse(&response.into_inner().unlock_key).ok()
}

pub fn autolock(on: bool) -> impl Fn(&mut UpdateClusterRequest) {
    move |request| request.spec.get_or_insert_default().autolock = on
}

/// The vault on the host's disk opens with this key, and holds no older data key any more.
pub async fn is_locked_by(host: &Host, key: Option<&UnlockKey>) {
    eventually("the vault has the new lock and only the new data key", || async {
        let vault = Vault::open(&host.state_dir(), key).ok()?;
        (vault_is_locked(&host.state_dir()).ok()? == key.is_some() && !vault.has_old_keys())
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unlock_key_locks_every_manager_and_changes_under_writes() {
    let mut cluster = Cluster::start(3).await;
    cluster.hosts[0].create("before").await.unwrap();
    assert!(!vault_is_locked(&cluster.hosts[0].state_dir()).unwrap());
    assert_eq!(unlock_key(&cluster.hosts[0]).await, None);

    update(&cluster.hosts[0], autolock(true)).await;
    let first = unlock_key(&cluster.hosts[0]).await.unwrap();
    for host in &cluster.hosts {
        is_locked_by(host, Some(&first)).await;
    }
    update(&cluster.hosts[0], |request| request.rotate_unlock_key = true).await;
    for number in 0..20 {
        cluster.hosts[1].create(&format!("during{number:02}")).await.unwrap();
    }
    let second = unlock_key(&cluster.hosts[0]).await.unwrap();
    assert_ne!(first, second);
    for host in &cluster.hosts {
        is_locked_by(host, Some(&second)).await;
    }
    cluster.settled().await;

    let host = &mut cluster.hosts[2];
    host.stop().await;
    let locked = host.vault().unwrap_err();
    assert!(matches!(locked, VaultError::Locked), "{locked}");
    let wrong = Vault::open(&host.state_dir(), Some(&first)).unwrap_err();
    assert_eq!(wrong.to_string(), "invalid key provided");
    let vault = Vault::open(&host.state_dir(), Some(&second)).unwrap();
    host.restart_with(vault).await;
    eventually("it is back", || async { cluster.hosts[2].create("after").await.ok() }).await;
    assert_eq!(cluster.hosts[2].services().await.unwrap().len(), 22);

    update(&cluster.hosts[0], autolock(false)).await;
    for host in &cluster.hosts {
        is_locked_by(host, None).await;
    }
    assert_eq!(unlock_key(&cluster.hosts[0]).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_with_autolock_is_locked_from_the_start_and_keeps_no_secret_open() {
    let timings = shoal_manager::Timings::default();
    let (mut host, listener) = Host::new(1, &timings).await;
    let spec = ClusterSpec { autolock: true, ..ClusterSpec::default() };
    let founding = host.founding(NewCluster { spec, ..NewCluster::default() });
    let unlock = founding.unlock_key().unwrap();
    let vault = Vault::create(&host.state_dir(), Some(&unlock)).unwrap();
    host.run(Manager::init(host.config_with(vault), founding), listener).await;
    assert_eq!(unlock_key(&host).await.as_ref(), Some(&unlock));
    host.create("a-readable-name").await.unwrap();
    is_locked_by(&host, Some(&unlock)).await;
    let gone = || async { (!host.state_dir().join("founder").exists()).then_some(()) };
    eventually("what the founder brought is taken away", gone).await;
    host.stop().await;
    let text = unlock.to_string();
    for file in fs::read_dir(host.state_dir()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        for secret in ["a-readable-name", "PRIVATE KEY", "SWMTKN", &text] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is readable");
        }
    }
}
