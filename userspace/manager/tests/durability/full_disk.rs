//! A disk without room: writes are refused in clear words, and go on when there is room again.
//!
//! The disks are real and small; mounting one needs root.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::geteuid;
use shoal_identity::UnlockKey;
use shoal_manager::{Manager, NewCluster, Timings, Vault, vault_is_locked};
use tonic::Code;

use crate::harness::{Cluster, Host, eventually, has_file};
use crate::keys::{autolock, is_locked_by, unlock_key, update};

/// A file system in memory of a few megabytes.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Path) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        std::fs::create_dir_all(folder).unwrap();
        let options = Some("size=8m,mode=0700");
        mount(Some("shoal-test"), folder, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        Some(Self { folder: folder.into() })
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Takes all room, byte by byte in the end.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while filler.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(&self.folder, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Snapshots often, so that they meet the full disk, too.
fn timings() -> Timings {
    Timings {
        snapshot_after: 10,
        kept_entries: 2,
        write_timeout: Duration::from_secs(2),
        ..Timings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_loses_none_and_serves_again_with_room() {
    let timings = timings();
    let (mut host, listener) = Host::new(1, &timings).await;
    let Some(disk) = SmallDisk::mount(&host.state_dir()) else { return };
    let founding = host.founding(NewCluster::default());
    host.run(Manager::init(host.config(), founding), listener).await;
    let mut stored = Vec::new();
    for round in 0..3 {
        for number in 0..15 {
            let name = format!("web{round}-{number:02}");
            host.create(&name).await.unwrap();
            stored.push(name);
        }
        disk.fill();
        // A page or two may still fit into what is there.
        let (took, refused) = loop {
            let name = format!("full{round}-{:02}", stored.len());
            let asked = Instant::now();
            match host.create(&name).await {
                Ok(_) => stored.push(name),
                Err(refused) => break (asked.elapsed(), refused),
            }
            disk.fill();
        };
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(took < timings.write_timeout * 2, "{took:?}");
        let refused = host.create("refused").await.unwrap_err();
        let text = refused.message();
        assert!(text.starts_with("this manager cannot write to its disk: "), "{text}");
        disk.free();
        eventually("it serves again", || async { host.create(&format!("free{round}")).await.ok() })
            .await;
        stored.push(format!("free{round}"));
    }
    let all = host.services().await.unwrap();
    assert!(stored.iter().all(|name| all.contains(name)), "{stored:?}");
    host.kill();
    host.restart().await;
    eventually("it leads again", || async { host.create("zzz").await.ok() }).await;
    let all = host.services().await.unwrap();
    assert!(stored.iter().all(|name| all.contains(name)), "{stored:?}");
    assert!(has_file(&host.state_dir(), "snapshot"));
    host.stop().await;
    drop(disk);
}

/// Three managers, the last of them on a small disk.
async fn with_a_small_disk() -> Option<(Cluster, SmallDisk)> {
    let timings = timings();
    let mut cluster = Cluster::start_with(2, &timings).await;
    let (mut host, listener) = Host::new(3, &timings).await;
    let disk = SmallDisk::mount(&host.state_dir())?;
    let token = cluster.hosts[0].tokens().await.manager;
    let addr = host.addr.clone();
    let joined = host.member.join(&cluster.hosts[0], &addr, &token).await.unwrap();
    host.run(Manager::join(host.config(), joined.raft_id), listener).await;
    host.manager().joined(crate::harness::PATIENCE).await.unwrap();
    cluster.hosts.push(host);
    Some((cluster, disk))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_on_while_one_managers_disk_is_full() {
    let Some((mut cluster, disk)) = with_a_small_disk().await else { return };
    disk.fill();
    let mut names = Vec::new();
    for number in 0..60 {
        let name = format!("web{number:02}");
        eventually("the others store it", || async { cluster.hosts[0].create(&name).await.ok() })
            .await;
        names.push(name);
    }
    disk.free();
    cluster.settled().await;
    cluster.hosts[2].kill();
    cluster.hosts[2].restart().await;
    eventually("it is back with everything", || async {
        let services = cluster.hosts[2].services().await.ok()?;
        (services == names).then_some(())
    })
    .await;
    cluster.hosts[2].stop().await;
    drop(disk);
}

#[test]
fn a_vault_on_a_full_disk_keeps_its_lock_and_takes_the_new_one_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("raft");
    let Some(disk) = SmallDisk::mount(&folder) else { return };
    let vault = Vault::create(&folder, None).unwrap();
    let sealed = vault.seal("x", b"old");
    let key = UnlockKey::from_bytes([5; 32]);
    disk.fill();
    for _ in 0..3 {
        let refused = vault.relock(Some(&key), 7).unwrap_err().to_string();
        assert!(refused.starts_with("cannot write "), "{refused}");
    }
    assert!(vault.is_stale(Some(&key), 7) && !vault.has_old_keys());
    let still = Vault::open(&folder, None).unwrap();
    assert_eq!(*still.unseal("x", &vault.seal("x", b"new")).unwrap(), b"new");
    disk.free();
    vault.relock(Some(&key), 7).unwrap();
    assert!(vault_is_locked(&folder).unwrap());
    let locked = Vault::open(&folder, Some(&key)).unwrap();
    assert_eq!(*locked.unseal("x", &sealed).unwrap(), b"old");
    assert_eq!(*locked.unseal("x", &vault.seal("x", b"new")).unwrap(), b"new");
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_whose_disk_is_full_takes_the_new_lock_as_soon_as_there_is_room() {
    let Some((mut cluster, disk)) = with_a_small_disk().await else { return };
    cluster.hosts[0].create("before").await.unwrap();
    cluster.settled().await;
    disk.fill();
    update(&cluster.hosts[0], autolock(true)).await;
    let first = unlock_key(&cluster.hosts[0]).await.unwrap();
    is_locked_by(&cluster.hosts[0], Some(&first)).await;
    update(&cluster.hosts[0], |request| request.rotate_unlock_key = true).await;
    let second = unlock_key(&cluster.hosts[0]).await.unwrap();
    is_locked_by(&cluster.hosts[0], Some(&second)).await;
    // Whichever of them its disk still took, what it has is whole.
    let full = cluster.hosts[2].state_dir();
    let opens = |key| Vault::open(&full, key).is_ok();
    assert!(opens(None) || opens(Some(&first)) || opens(Some(&second)));
    disk.free();
    is_locked_by(&cluster.hosts[2], Some(&second)).await;

    let host = &mut cluster.hosts[2];
    host.kill();
    let vault = Vault::open(&full, Some(&second)).unwrap();
    host.restart_with(vault).await;
    eventually("it is back", || async { cluster.hosts[2].create("after").await.ok() }).await;
    assert_eq!(cluster.hosts[2].services().await.unwrap(), ["after", "before"]);
    cluster.hosts[2].stop().await;
    drop(disk);
}
