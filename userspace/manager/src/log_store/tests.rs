//! The log against openraft's own suite, restarts, and a disk that is full.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::entry::RaftEntry;
use openraft::storage::RaftLogStorageExt;
use openraft::testing::log::{StoreBuilder, Suite};
use redb::StorageBackend;
use redb::backends::FileBackend;
use shoal_api::{Batch, Service};
use tempfile::TempDir;

use super::*;
use crate::state_machine::{StateMachine, View};
use crate::types::Proposal;

struct Builder;

fn owner() -> Identity {
    Identity { node_id: "n1".into(), raft_id: 1 }
}

/// A new log and its vault.
fn new(folder: &TempDir) -> (PathBuf, Vault) {
    let path = folder.path().join("log");
    let vault = Vault::create(folder.path(), None).unwrap();
    let beginning = Beginning { owner: owner(), purged: None, vote: None };
    LogStore::create(&path, &vault, &beginning).unwrap();
    (path, vault)
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(TempDir, LogStore, StateMachine), openraft::StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let (path, vault) = new(&folder);
        let log = LogStore::open(&path, &vault, &owner()).unwrap();
        let view = Arc::new(View::default());
        let machine = StateMachine::open(folder.path().into(), vault, view).unwrap();
        Ok((folder, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_own_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: 1u64.into(), index }
}

fn blank(index: u64) -> Entry {
    Entry::new(log_id(index), EntryPayload::Blank)
}

/// Ends the writer and waits until the file is free.
async fn close(log: LogStore) {
    let trouble = log.trouble();
    drop(log);
    closed(trouble).await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (path, vault) = new(&folder);
    let vote = Vote::new(3, 2);
    let mut log = LogStore::open(&path, &vault, &owner()).unwrap();
    log.save_vote(&vote).await.unwrap();
    log.blocking_append((1..=9).map(blank)).await.unwrap();
    log.truncate_after(Some(log_id(7))).await.unwrap();
    log.purge(log_id(2)).await.unwrap();
    log.save_committed(Some(log_id(6))).await.unwrap();
    log.reseal().await.unwrap();
    close(log).await;

    let mut log = LogStore::open(&path, &vault, &owner()).unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(2)));
    assert_eq!(state.last_log_id, Some(log_id(7)));
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(6)));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (3..=7).map(blank).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let (path, vault) = new(&folder);
    let log = LogStore::open(&path, &vault, &owner()).unwrap();
    assert!(matches!(LogStore::open(&path, &vault, &owner()), Err(OpenError::Locked)));
    close(log).await;
    assert!(LogStore::open(&path, &vault, &owner()).is_ok());
}

#[tokio::test]
async fn the_file_shows_nothing_and_follows_to_a_new_key() {
    let folder = tempfile::tempdir().unwrap();
    let (path, vault) = new(&folder);
    let mut log = LogStore::open(&path, &vault, &owner()).unwrap();
    let service = Service { id: "readable".repeat(20), ..Service::default() };
    let batch = Batch { changes: vec![service.put()], now_ns: 7 };
    let payload = EntryPayload::Normal(Proposal(batch));
    let entry = Entry { payload, ..blank(1) };
    log.blocking_append([entry.clone()]).await.unwrap();
    log.save_vote(&Vote::new(3, 2)).await.unwrap();
    let file = std::fs::read(&path).unwrap();
    assert!(!file.windows(8).any(|window| window == b"readable"), "it is sealed");

    vault.relock(None, 1).unwrap();
    log.reseal().await.unwrap();
    vault.retire(vault.newest().0).unwrap();
    close(log).await;
    let mut log = LogStore::open(&path, &vault, &owner()).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry]);
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 2)));
}

#[tokio::test]
async fn a_missing_foreign_or_newer_log_and_a_file_that_is_none_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, vault) = new(&folder);
    let text = |vault: &Vault, owner: &Identity| {
        LogStore::open(&path, vault, owner).err().unwrap().to_string()
    };
    let another = Identity { node_id: "n2".into(), raft_id: 7 };
    assert_eq!(text(&vault, &another), "the log of node n1 as manager 1");
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Vault::create(elsewhere.path(), None).unwrap();
    assert_eq!(text(&other, &owner()), "sealed data is damaged or not of this manager");

    let database = Database::open(&path).unwrap();
    writer::set_format(&database, 9).unwrap();
    drop(database);
    assert_eq!(text(&vault, &owner()), "of version 9, this release reads 1");

    std::fs::write(&path, [7; 8192]).unwrap();
    assert!(matches!(LogStore::open(&path, &vault, &owner()), Err(OpenError::Damaged(_))));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(LogStore::open(&path, &vault, &owner()), Err(OpenError::Missing)));
    assert!(!path.exists(), "it is not made anew");
}

/// A disk that is full while the flag is up.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        let full = self.full.load(Ordering::SeqCst);
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }
}

struct FullPlace {
    path: PathBuf,
    full: Arc<AtomicBool>,
}

impl Place for FullPlace {
    fn open(&self) -> Result<Database, redb::Error> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let disk = Disk { file: FileBackend::new(file)?, full: self.full.clone() };
        Ok(Database::builder().create_with_backend(disk)?)
    }
    fn fresh(&self) -> Result<Database, redb::Error> {
        unreachable!("a full disk is no reason to write all anew")
    }
    fn replace(&self) -> io::Result<()> {
        unreachable!("a full disk is no reason to write all anew")
    }
    fn is_doubtful(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_full_disk_delays_writes_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let (path, vault) = new(&folder);
    let full = Arc::new(AtomicBool::new(false));
    let place = FullPlace { path: path.clone(), full: full.clone() };
    let mut log = LogStore::open_with(Box::new(place), &vault, &owner()).unwrap();
    log.blocking_append((1..=3).map(blank)).await.unwrap();

    full.store(true, Ordering::SeqCst);
    let mut writer = log.clone();
    let write = tokio::spawn(async move { writer.blocking_append((4..=6).map(blank)).await });
    log.trouble.wait_for(Option::is_some).await.unwrap();
    assert!(log.trouble().borrow().is_some());
    assert!(!write.is_finished(), "nothing is acknowledged that is not stored");

    full.store(false, Ordering::SeqCst);
    write.await.unwrap().unwrap();
    assert_eq!(*log.trouble().borrow(), None);
    close(log).await;
    let mut log = LogStore::open(&path, &vault, &owner()).unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (1..=6).map(blank).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_follower_gets_no_more_at_once_than_fits_in_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let (path, vault) = new(&folder);
    let mut log = LogStore::open(&path, &vault, &owner()).unwrap();
    let entry = |index, bytes| {
        let service = Service { id: "s".repeat(bytes), ..Service::default() };
        let batch = Batch { changes: vec![service.put()], now_ns: 7 };
        Entry { payload: EntryPayload::Normal(Proposal(batch)), ..blank(index) }
    };
    let large = |index| entry(index, PAYLOAD / 2 - 1_000);
    let huge = |index| entry(index, PAYLOAD * 2);
    log.blocking_append((1..=5).map(large).chain([huge(6), blank(7)])).await.unwrap();
    let mut ends = Vec::new();
    let mut next = 1;
    while next < 8 {
        let entries = log.limited_get_log_entries(next, 8).await.unwrap();
        assert_eq!(entries.first().unwrap().log_id.index, next);
        next = entries.last().unwrap().log_id.index + 1;
        ends.push(next - 1);
    }
    assert_eq!(ends, [2, 4, 5, 6, 7]);
    assert!(log.limited_get_log_entries(8, 8).await.unwrap().is_empty());
}
