//! Raft's log on disk: one redb file, one writer thread that groups what waits into one commit.
//!
//! The log since the last snapshot is also kept in memory, so reads never touch the disk and an
//! entry is readable as soon as it is appended; Raft hears that it is durable after the flush. The
//! committed index rides on the next flush: losing it costs a restarted manager only a replay.
//!
//! A disk that refuses a write (full, most often) does not end Raft: the writer re-opens the file
//! and tries the same group again until it is stored, and nothing is acknowledged meanwhile. After
//! a flush that failed it writes the file anew from memory.
//!
//! Every record is sealed by the vault, with its table and index in the associated data. Only the
//! version of the format stands open, so that another one is named. The log says whose it is: a
//! file of another manager is refused, and a missing one is not made anew, for its votes are gone.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use openraft::EntryPayload;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message;
use redb::Database;
use tokio::sync::{oneshot, watch};

use self::place::{OsPlace, Place};
use self::writer::Writer;
use crate::files::{Disk, Os};
use crate::identity::Identity;
use crate::types::{Entry, LogId, TypeConfig, Vote, encode};
use crate::vault::Vault;

mod place;
mod writer;

const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";
/// Whose log it is.
const OWNER: &str = "owner";
/// What the other records are written in; the one that is not sealed.
const FORMAT: &str = "format";
/// The format that this release writes and reads.
pub const VERSION: u32 = 1;

/// Bytes of entries that go to a follower in one message: a small part of what a message may hold,
/// and stored well within the time that a follower has.
const PAYLOAD: usize = 4 << 20;

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
    /// There is none. One that comes back without its log may have forgotten a vote.
    #[error("missing")]
    Missing,
    /// Of another release.
    #[error("of version {0}, this release reads {VERSION}")]
    Version(u32),
    /// The file is not a log, another manager's, or broken.
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
            redb::Error::Io(failure) if failure.kind() == io::ErrorKind::NotFound => Self::Missing,
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
    /// Everything again, under the vault's newest key.
    Reseal,
    /// Everything gone, but for this.
    Restart(Box<Beginning>),
}

/// All that a log holds.
pub struct Contents {
    /// In order.
    pub entries: Vec<Entry>,
    /// What its owner has voted for.
    pub vote: Option<Vote>,
    /// The last entry that it does not hold any more.
    pub purged: Option<LogId>,
}

/// What a log starts from that has no entries yet.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// Whose log it is.
    pub owner: Identity,
    /// The last entry that a snapshot holds.
    pub purged: Option<LogId>,
    /// What its owner has voted for.
    pub vote: Option<Vote>,
}

/// Who waits for it.
enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Call(oneshot::Sender<io::Result<()>>),
}

type Command = (Vec<Write>, Waiter);

impl LogStore {
    /// Makes a new log at `path`, in the place of what is there.
    ///
    /// # Errors
    /// The disk refused.
    pub fn create(path: &Path, vault: &Vault, beginning: &Beginning) -> Result<(), OpenError> {
        let database = Database::builder().create_file(place::make(path)?);
        let database = database.map_err(redb::Error::from)?;
        let writes = [Write::Restart(Box::new(beginning.clone()))];
        writer::commit(&database, vault, None, &writes)?;
        drop(database);
        let folder = path.parent().expect("a log lies in a folder");
        Ok(Os.sync_folder(folder)?)
    }

    /// Opens the log at `path`, which must be that manager's.
    ///
    /// # Errors
    /// The file cannot be opened, is in use by another process, or holds what this release cannot
    /// read.
    pub fn open(path: &Path, vault: &Vault, owner: &Identity) -> Result<Self, OpenError> {
        Self::open_with(Box::new(OsPlace::new(path)), vault, owner)
    }

    /// Reads all of the log at `path`, and leaves it as it is but for a repair after a crash.
    ///
    /// # Errors
    /// As [`LogStore::open`].
    pub fn read(path: &Path, vault: &Vault, owner: &Identity) -> Result<Contents, OpenError> {
        let database = Database::open(path).map_err(redb::Error::from)?;
        let Memory { entries, vote, purged, .. } = writer::load(&database, vault, owner)?;
        Ok(Contents { entries: entries.into_values().collect(), vote, purged })
    }

    /// Opens the log that lies there.
    ///
    /// # Errors
    /// As [`LogStore::open`].
    fn open_with(
        place: Box<dyn Place>,
        vault: &Vault,
        owner: &Identity,
    ) -> Result<Self, OpenError> {
        let database = place.open()?;
        let memory = Arc::new(Mutex::new(writer::load(&database, vault, owner)?));
        let (writer, commands) = mpsc::channel();
        let (trouble, trouble_seen) = watch::channel(None);
        let thread = Writer {
            place,
            database: Some(database),
            memory: memory.clone(),
            vault: vault.clone(),
            owner: owner.clone(),
            trouble,
        };
        thread::Builder::new().name("raft-log".into()).spawn(move || thread.run(&commands))?;
        Ok(Self { memory, writer, trouble: trouble_seen })
    }

    /// Seals everything under the vault's newest key.
    ///
    /// # Errors
    /// The writer has ended.
    pub async fn reseal(&self) -> io::Result<()> {
        self.call(vec![Write::Reseal]).await
    }

    /// Index of the last entry that the log does not hold any more, `None` if it holds all.
    pub fn purged(&self) -> Option<u64> {
        self.memory.lock().purged.map(|purged| purged.index)
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

    /// At most [`PAYLOAD`] bytes of entries, one at least: a follower that lacks many large ones
    /// gets them in messages that fit.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        if start < end {
            for (_, entry) in self.memory.lock().entries.range(start..end) {
                bytes += size(entry);
                if bytes > PAYLOAD && !entries.is_empty() {
                    break;
                }
                entries.push(entry.clone());
            }
        }
        Ok(entries)
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
        // First, so that a file that is written anew from memory never forgets one that was kept.
        self.memory.lock().vote = Some(*vote);
        self.call(vec![Write::Meta(VOTE, encode(vote)?)]).await
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

/// Bytes of an entry's batch; the rest is small.
fn size(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.encoded_len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's writer has stopped")
}

#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;
