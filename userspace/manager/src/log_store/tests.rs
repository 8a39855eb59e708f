//! The log against openraft's own suite, restarts, and a disk that is full.

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

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(TempDir, LogStore, StateMachine), openraft::StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let log = LogStore::open(&folder.path().join("log")).unwrap();
        let view = Arc::new(View::default());
        let machine = StateMachine::open(folder.path().into(), view).unwrap();
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
    let path = folder.path().join("log");
    let vote = Vote::new(3, 2);
    let mut log = LogStore::open(&path).unwrap();
    log.save_vote(&vote).await.unwrap();
    log.blocking_append((1..=9).map(blank)).await.unwrap();
    log.truncate_after(Some(log_id(7))).await.unwrap();
    log.purge(log_id(2)).await.unwrap();
    log.save_committed(Some(log_id(6))).await.unwrap();
    close(log).await;

    let mut log = LogStore::open(&path).unwrap();
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
    let path = folder.path().join("log");
    let log = LogStore::open(&path).unwrap();
    assert!(matches!(LogStore::open(&path), Err(OpenError::Locked)));
    close(log).await;
    assert!(LogStore::open(&path).is_ok());
}

#[tokio::test]
async fn a_file_that_is_no_log_is_named_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::fs::write(&path, [7; 8192]).unwrap();
    assert!(matches!(LogStore::open(&path), Err(OpenError::Damaged(_))));
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

#[tokio::test]
async fn a_full_disk_delays_writes_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let full = Arc::new(AtomicBool::new(false));
    let (disk_path, disk_full) = (path.clone(), full.clone());
    let opener = move || {
        let mut options = std::fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = FileBackend::new(options.open(&disk_path)?)?;
        let disk = Disk { file, full: disk_full.clone() };
        Ok(Database::builder().create_with_backend(disk)?)
    };
    let mut log = LogStore::open_with(Box::new(opener)).unwrap();
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
    let mut log = LogStore::open(&path).unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (1..=6).map(blank).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_follower_gets_no_more_at_once_than_fits_in_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(&folder.path().join("log")).unwrap();
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
