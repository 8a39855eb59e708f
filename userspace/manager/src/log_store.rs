//! Raft's log on disk: one redb file, one writer thread that groups what waits into one commit.
//!
//! The log since the last snapshot is also kept in memory, so reads never touch the disk and an
//! entry is readable as soon as it is appended; Raft hears that it is durable after the flush. The
//! committed index rides on the next flush: losing it costs a restarted manager only a replay.
//!
//! A disk that refuses a write (full, most often) does not end Raft: the writer re-opens the file
//! and tries the same group again until it is stored, and nothing is acknowledged meanwhile.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use crate::types::{Entry, LogId, TypeConfig, Vote, decode, encode};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";

/// Commands in one commit. More would only delay the first of them.
const GROUP: usize = 256;
/// Between two tries to write to a disk that refuses: soon after space is freed, yet no busy loop.
const RETRY: Duration = Duration::from_millis(500);

/// Opens the database; tests put a failing disk behind it.
pub type Opener = Box<dyn Fn() -> Result<Database, redb::Error> + Send>;

/// The log of one manager. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    memory: Arc<Mutex<Memory>>,
    writer: mpsc::Sender<Command>,
    trouble: watch::Receiver<Option<String>>,
}

/// Returns when the writer has ended and the file is closed, after the last clone was dropped.
pub async fn closed(mut trouble: watch::Receiver<Option<String>>) {
    while trouble.changed().await.is_ok() {}
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("in use by another process")]
    Locked,
    /// The file is not a log, of another version, or broken.
    #[error("{0}")]
    Damaged(String),
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<redb::Error> for OpenError {
    fn from(failure: redb::Error) -> Self {
        match failure {
            redb::Error::DatabaseAlreadyOpen => Self::Locked,
            redb::Error::Io(failure) if failure.kind() != io::ErrorKind::InvalidData => {
                Self::Io(failure)
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// What readers see.
#[derive(Default)]
struct Memory {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
}

/// One thing to make durable.
enum Write {
    Entries(Vec<(u64, Vec<u8>)>),
    Meta(&'static str, Vec<u8>),
    /// Entries from this index on.
    Truncate(u64),
    /// Entries up to this index.
    Purge(u64),
}

/// Who waits for it.
enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Call(oneshot::Sender<io::Result<()>>),
}

type Command = (Vec<Write>, Waiter);

impl LogStore {
    /// Opens or creates the log at `path`.
    ///
    /// # Errors
    /// The file cannot be opened, is in use by another process, or holds what this release cannot
    /// read.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let path: PathBuf = path.into();
        Self::open_with(Box::new(move || Ok(Database::create(&path)?)))
    }

    /// Opens the log in whatever `opener` gives.
    ///
    /// # Errors
    /// As [`LogStore::open`].
    pub fn open_with(opener: Opener) -> Result<Self, OpenError> {
        let database = opener()?;
        let memory = Arc::new(Mutex::new(load(&database)?));
        let (writer, commands) = mpsc::channel();
        let (trouble, trouble_seen) = watch::channel(None);
        let thread = Writer { opener, database: Some(database), memory: memory.clone(), trouble };
        thread::Builder::new().name("raft-log".into()).spawn(move || thread.run(&commands))?;
        Ok(Self { memory, writer, trouble: trouble_seen })
    }

    /// Why the disk refuses writes, `None` while all is well; ends with the writer.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    fn send(&self, writes: Vec<Write>, waiter: Waiter) -> io::Result<()> {
        self.writer.send((writes, waiter)).map_err(|_closed| stopped())
    }

    async fn call(&self, writes: Vec<Write>) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.send(writes, Waiter::Call(done))?;
        result.await.map_err(|_closed| stopped())?
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        if is_empty(&range) {
            return Ok(Vec::new());
        }
        Ok(self.memory.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory.lock();
        let last = memory.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: last.or(memory.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.call(vec![Write::Meta(VOTE, encode(vote)?)]).await?;
        self.memory.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.memory.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.memory.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut encoded = Vec::new();
        {
            let mut memory = self.memory.lock();
            for entry in entries {
                encoded.push((entry.log_id.index, encode(&entry)?));
                memory.entries.insert(entry.log_id.index, entry);
            }
        }
        self.send(vec![Write::Entries(encoded)], Waiter::Append(callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let first_gone = last.map_or(0, |last| last.index + 1);
        self.memory.lock().entries.split_off(&first_gone);
        self.call(vec![Write::Truncate(first_gone)]).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut memory = self.memory.lock();
            memory.entries = memory.entries.split_off(&(upto.index + 1));
            memory.purged = Some(upto);
        }
        self.call(vec![Write::Meta(PURGED, encode(&upto)?), Write::Purge(upto.index)]).await
    }
}

/// The thread that owns the file.
struct Writer {
    opener: Opener,
    /// `None` after a failure: redb wants the file opened anew, which undoes a half-made commit.
    database: Option<Database>,
    memory: Arc<Mutex<Memory>>,
    trouble: watch::Sender<Option<String>>,
}

impl Writer {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        while let Ok(first) = commands.recv() {
            let (mut writes, waiter) = first;
            let mut waiters = vec![waiter];
            while waiters.len() < GROUP
                && let Ok((more, waiter)) = commands.try_recv()
            {
                writes.extend(more);
                waiters.push(waiter);
            }
            let stored = self.store(&writes);
            for waiter in waiters {
                let result = if stored { Ok(()) } else { Err(stopped()) };
                match waiter {
                    Waiter::Append(callback) => callback.io_completed(result),
                    // Whoever asked may have been cancelled; the write holds nevertheless.
                    Waiter::Call(done) => drop(done.send(result)),
                }
            }
        }
        // A clean end keeps the committed index, so that a restart replays without waiting.
        if self.memory.lock().committed.is_some() {
            drop(self.commit(&[]));
        }
    }

    /// Stores a group, however long the disk refuses it. `false` when nobody is left to wait.
    fn store(&mut self, writes: &[Write]) -> bool {
        loop {
            match self.commit(writes) {
                Ok(()) => {
                    if self.trouble.send_replace(None).is_some() {
                        info!("the disk takes writes again");
                    }
                    return true;
                }
                Err(failure) => {
                    let text = failure.to_string();
                    if self.trouble.send_replace(Some(text.clone())).is_none() {
                        error!(error = text, "cannot write the Raft log; free some disk space");
                    }
                    self.database = None;
                }
            }
            if Arc::strong_count(&self.memory) == 1 {
                return false;
            }
            thread::sleep(RETRY);
        }
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), redb::Error> {
        let database = match &mut self.database {
            Some(database) => database,
            closed => closed.insert((self.opener)()?),
        };
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut log = transaction.open_table(LOG)?;
            let mut meta = transaction.open_table(META)?;
            let committed = self.memory.lock().committed;
            if let Some(committed) = committed
                && let Ok(bytes) = encode(&committed)
            {
                meta.insert(COMMITTED, bytes.as_slice())?;
            }
            for write in writes {
                match write {
                    Write::Entries(entries) => {
                        for (index, bytes) in entries {
                            log.insert(index, bytes.as_slice())?;
                        }
                    }
                    Write::Meta(key, bytes) => {
                        meta.insert(key, bytes.as_slice())?;
                    }
                    Write::Truncate(first) => log.retain_in::<u64, _>(first.., |_, _| false)?,
                    Write::Purge(last) => log.retain_in::<u64, _>(..=last, |_, _| false)?,
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Reads everything into memory.
fn load(database: &Database) -> Result<Memory, OpenError> {
    let (rows, fields) = read(database)?;
    let [vote, purged, committed] = fields;
    let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
    for (index, bytes) in rows {
        entries.insert(index, decode(&bytes).map_err(damaged)?);
    }
    // A leader may know an index as committed before its own entry was flushed.
    let committed = decode_some(committed)?.filter(|committed: &LogId| {
        entries.get(&committed.index).is_some_and(|entry| entry.log_id == *committed)
    });
    Ok(Memory { entries, vote: decode_some(vote)?, purged: decode_some(purged)?, committed })
}

/// The encoded entries, and vote, purged and committed.
type Stored = (Vec<(u64, Vec<u8>)>, [Option<Vec<u8>>; 3]);

fn read(database: &Database) -> Result<Stored, redb::Error> {
    let transaction = database.begin_write()?;
    // Creates the tables of a new file, so that readers need not tell "none" from "missing".
    transaction.open_table(LOG)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let (log, meta) = (transaction.open_table(LOG)?, transaction.open_table(META)?);
    let field = |key| -> Result<Option<Vec<u8>>, redb::Error> {
        Ok(meta.get(key)?.map(|value| value.value().to_vec()))
    };
    let mut rows = Vec::new();
    for row in log.iter()? {
        let (index, bytes) = row?;
        rows.push((index.value(), bytes.value().to_vec()));
    }
    Ok((rows, [field(VOTE)?, field(PURGED)?, field(COMMITTED)?]))
}

fn decode_some<T: DeserializeOwned>(bytes: Option<Vec<u8>>) -> Result<Option<T>, OpenError> {
    bytes.map(|bytes| decode(&bytes)).transpose().map_err(damaged)
}

fn damaged(reason: io::Error) -> OpenError {
    OpenError::Damaged(reason.to_string())
}

/// `BTreeMap::range` panics on a range that ends before it starts.
fn is_empty(range: &impl RangeBounds<u64>) -> bool {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match range.end_bound() {
        Bound::Included(&end) => end < start,
        Bound::Excluded(&end) => end <= start,
        Bound::Unbounded => false,
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's writer has stopped")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use openraft::entry::RaftEntry;
    use openraft::storage::RaftLogStorageExt;
    use openraft::testing::log::{StoreBuilder, Suite};
    use redb::StorageBackend;
    use redb::backends::FileBackend;
    use tempfile::TempDir;

    use super::*;
    use crate::state_machine::{StateMachine, View};

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
        Entry::new(log_id(index), openraft::EntryPayload::Blank)
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
}
