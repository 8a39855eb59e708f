//! The vault on a real folder: locks, wrong keys, damage, and keys that come and go.

use std::fs;

use super::*;
use crate::files::power::PowerDisk;

fn unlock(byte: u8) -> UnlockKey {
    UnlockKey::from_bytes([byte; 32])
}

#[test]
fn what_is_sealed_opens_again_in_its_own_place_only() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), None).unwrap();
    let sealed = vault.seal("log 7", b"an entry");
    assert!(!sealed.windows(8).any(|window| window == b"an entry"));
    assert_eq!(*vault.unseal("log 7", &sealed).unwrap(), b"an entry");
    assert!(matches!(vault.unseal("log 8", &sealed), Err(VaultError::Unsealable)));
    for at in 0..sealed.len() {
        let mut bad = sealed.clone();
        bad[at] ^= 1;
        assert!(vault.unseal("log 7", &bad).is_err(), "byte {at}");
        assert!(vault.unseal("log 7", &sealed[..at]).is_err(), "cut to {at}");
    }
    let again = Vault::open(folder.path(), None).unwrap();
    assert_eq!(*again.unseal("log 7", &sealed).unwrap(), b"an entry");
    let other = tempfile::tempdir().unwrap();
    let other = Vault::create(other.path(), None).unwrap();
    assert!(matches!(other.unseal("log 7", &sealed), Err(VaultError::Unsealable)));
}

#[test]
fn a_locked_vault_opens_with_its_key_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), Some(&unlock(1))).unwrap();
    let sealed = vault.seal("x", b"secret");
    assert!(is_locked(folder.path()).unwrap());
    assert!(matches!(Vault::open(folder.path(), None), Err(VaultError::Locked)));
    let wrong = Vault::open(folder.path(), Some(&unlock(2))).unwrap_err();
    assert_eq!(wrong.to_string(), "invalid key provided");
    let right = Vault::open(folder.path(), Some(&unlock(1))).unwrap();
    assert_eq!(*right.unseal("x", &sealed).unwrap(), b"secret");
    assert!(!right.is_stale(Some(&unlock(1)), 9) && right.is_stale(None, 9));
}

#[test]
fn what_a_crash_left_while_it_was_unlocked_is_gone_even_when_no_key_is_given() {
    let folder = tempfile::tempdir().unwrap();
    drop(Vault::create(folder.path(), Some(&unlock(1))).unwrap());
    let rest = folder.path().join("vault.new");
    for key in [None, Some(unlock(2)), Some(unlock(1))] {
        fs::write(&rest, b"keys as they are").unwrap();
        let opened = Vault::open(folder.path(), key.as_ref());
        assert_eq!(opened.is_ok(), key.is_some_and(|key| key.as_bytes() == &[1; 32]));
        assert!(!rest.exists());
    }
}

#[test]
fn a_new_lock_brings_a_new_data_key_and_the_old_one_reads_until_it_is_retired() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), None).unwrap();
    let before = vault.seal("x", b"old");
    vault.relock(Some(&unlock(1)), 7).unwrap();
    assert!(!vault.is_stale(None, 7), "an older cluster does not undo it");
    assert!(vault.is_stale(None, 8));
    let after = vault.seal("x", b"new");
    assert!(vault.has_old_keys());
    let again = Vault::open(folder.path(), Some(&unlock(1))).unwrap();
    assert_eq!(*again.unseal("x", &before).unwrap(), b"old");
    again.retire(again.newest().0).unwrap();
    assert!(!again.has_old_keys());
    assert!(matches!(again.unseal("x", &before), Err(VaultError::Unsealable)));
    assert_eq!(*again.unseal("x", &after).unwrap(), b"new");
    again.relock(None, 8).unwrap();
    assert!(!is_locked(folder.path()).unwrap());
    let open = Vault::open(folder.path(), None).unwrap();
    assert_eq!(*open.unseal("x", &after).unwrap(), b"new");
}

#[test]
fn a_file_elsewhere_follows_to_the_newest_key() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(&folder.path().join("raft"), None).unwrap();
    let path = folder.path().join("node.key");
    vault.write_file(&path, "node.key", b"the key").unwrap();
    vault.relock(Some(&unlock(1)), 7).unwrap();
    vault.reseal_files().unwrap();
    vault.retire(2).unwrap();
    let vault = Vault::open(&folder.path().join("raft"), Some(&unlock(1))).unwrap();
    assert_eq!(*vault.read_file(&path, "node.key").unwrap(), b"the key");
    assert!(vault.read_file(&path, "another").is_err());
    fs::remove_file(&path).unwrap();
    vault.reseal_files().unwrap();
    assert!(matches!(vault.read_file(&path, "node.key"), Err(VaultError::Missing { .. })));
}

#[test]
fn a_missing_damaged_or_foreign_vault_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Vault::open(folder.path(), None).unwrap_err();
    assert!(matches!(missing, VaultError::Missing { .. }), "{missing}");
    drop(Vault::create(folder.path(), None).unwrap());
    let twice = Vault::create(folder.path(), None).unwrap_err();
    assert!(matches!(twice, VaultError::InUse { .. }), "{twice}");
    let path = folder.path().join(FILE);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&path, &bad).unwrap();
        assert!(Vault::open(folder.path(), None).is_err(), "byte {at}");
        fs::write(&path, &good[..at]).unwrap();
        assert!(Vault::open(folder.path(), None).is_err(), "cut to {at}");
    }
    let mut newer = good;
    newer[8] = 9;
    fs::write(&path, newer).unwrap();
    let newer = Vault::open(folder.path(), None).unwrap_err();
    assert!(newer.to_string().ends_with("is of version 9, this release reads 1"), "{newer}");
}

#[test]
fn no_debug_output_shows_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), Some(&unlock(0xAB))).unwrap();
    let text = format!("{vault:?}");
    assert!(!text.contains("171") && text.contains("vault"), "{text}");
}

#[test]
fn a_power_cut_while_the_keys_change_leaves_the_old_ones_or_the_new_ones() {
    let path = Path::new("/raft/vault");
    let state = |keys: u32| State {
        keys: (1..=keys).map(|id| (id, Zeroizing::new([id.to_le_bytes()[0]; 32]))).collect(),
        lock: None,
        version: 0,
    };
    for seed in 0..200 {
        for cut in 0..12 {
            let disk = PowerDisk::new(seed, Some(cut));
            let stored =
                (1..=3).take_while(|keys| Vault::write_on(&disk, path, &state(*keys)).is_ok());
            let acknowledged = stored.count();
            let found = disk.after_power_cut(path).map_or(0, |bytes| {
                assert_eq!(kind(path, &bytes).unwrap(), PLAIN);
                let (sum, keys) = bytes[HEADER..].split_at(4);
                assert_eq!(crc32fast::hash(keys).to_le_bytes(), sum);
                parse(keys).unwrap().1.len()
            });
            assert!(found >= acknowledged, "seed {seed}, cut {cut}: {found} < {acknowledged}");
        }
    }
}
