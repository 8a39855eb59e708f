//! Raft's log over the simulated disk, with the manager's rules: entries are readable when `append`
//! returns, Raft hears that they are durable after the sync, one writer groups what waits.
//!
//! The file is a row of records, each with its length and checksum; a purge writes it anew beside
//! the old one and renames it. What a torn write left is cut off at the first record that does not
//! hold, before anything is written again: records behind it must not come back to life.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Weak};

use openraft::AsyncRuntime;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft_rt_sim::SimRuntime;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::Rules;
use super::disk::Mount;
use super::invariants::Event;
use super::types::{Entry, LogId, TypeConfig, Vote, decode, encode, invalid};
use super::world::World;

const FILE: &str = "log";
const NEW: &str = "log.new";
/// Bytes of dead records before a purge is worth a new file.
const REWRITE: usize = 64 << 10;
/// Commands in one sync, as in the manager.
const GROUP: usize = 256;

/// The log of one start of a manager. Clones share it.
#[derive(Clone)]
pub(super) struct LogStore {
    memory: Arc<Mutex<Memory>>,
    writer: mpsc::UnboundedSender<Command>,
    world: Weak<World>,
    raft_id: u64,
    rules: Rules,
}

#[derive(Default)]
struct Memory {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
}

impl Memory {
    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        let entry = self.entries.get(&index).map(|entry| entry.log_id);
        let log_id = entry.or_else(|| self.purged.filter(|purged| purged.index == index))?;
        Some(**log_id.committed_leader_id())
    }

    /// A leader that was elected and not replaced.
    fn leads(&self, raft_id: u64) -> bool {
        self.vote.is_some_and(|vote| vote.committed && vote.leader_id.voted_for == raft_id)
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Entry(entry) => drop(self.entries.insert(entry.log_id.index, *entry)),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Committed(committed) => self.committed = Some(committed),
            Record::Truncate(first_gone) => drop(self.entries.split_off(&first_gone)),
            Record::Purge(purged) => {
                self.entries = self.entries.split_off(&(purged.index + 1));
                self.purged = Some(purged);
            }
        }
    }
}

enum Record {
    Entry(Box<Entry>),
    Vote(Vote),
    Committed(LogId),
    /// Entries from this index on are gone.
    Truncate(u64),
    Purge(LogId),
}

impl Record {
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let (kind, payload) = match self {
            Self::Entry(entry) => (1, encode(&**entry)?),
            Self::Vote(vote) => (2, encode(vote)?),
            Self::Committed(committed) => (3, encode(committed)?),
            Self::Truncate(first_gone) => (4, encode(first_gone)?),
            Self::Purge(purged) => (5, encode(purged)?),
        };
        let length = u32::try_from(payload.len() + 1).map_err(io::Error::other)?;
        let mut checked = vec![kind];
        checked.extend(payload);
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(crc32fast::hash(&checked).to_le_bytes());
        bytes.extend(checked);
        Ok(bytes)
    }

    /// The first record and its length; `None` where it does not hold.
    fn first(bytes: &[u8]) -> Option<(io::Result<Self>, usize)> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let checked = rest.get(..length)?;
        if crc32fast::hash(checked) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let (kind, payload) = checked.split_first()?;
        let record = match kind {
            1 => decode(payload).map(|entry| Self::Entry(Box::new(entry))),
            2 => decode(payload).map(Self::Vote),
            3 => decode(payload).map(Self::Committed),
            4 => decode(payload).map(Self::Truncate),
            5 => decode(payload).map(Self::Purge),
            _ => Err(invalid("an unknown record")),
        };
        Some((record, length + 8))
    }
}

enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Call(oneshot::Sender<io::Result<()>>),
    Nobody,
}

type Command = (Vec<Record>, Waiter);

impl LogStore {
    /// Reads what the disk holds and starts the writer.
    pub(super) fn open(world: &Arc<World>, mount: &Mount, raft_id: u64) -> io::Result<Self> {
        let loaded = load(mount)?;
        let vote = loaded.vote;
        let memory = Arc::new(Mutex::new(loaded));
        let (writer, commands) = mpsc::unbounded_channel();
        let writing = Writer { mount: mount.clone(), memory: memory.clone(), vote };
        drop(SimRuntime::spawn(writing.run(commands)));
        Ok(Self { memory, writer, world: Arc::downgrade(world), raft_id, rules: world.rules })
    }

    /// Index of the newest entry.
    pub(super) fn last_index(&self) -> u64 {
        self.memory.lock().last().map_or(0, |last| last.index)
    }

    fn observe(&self, event: &Event<'_>) {
        if let Some(world) = self.world.upgrade() {
            world.judge.observe(event);
        }
    }

    fn send(&self, records: Vec<Record>, waiter: Waiter) -> io::Result<()> {
        self.writer.send((records, waiter)).map_err(|_closed| stopped())
    }

    async fn call(&self, records: Vec<Record>) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.send(records, Waiter::Call(done))?;
        result.await.map_err(|_closed| stopped())?
    }
}

fn load(mount: &Mount) -> io::Result<Memory> {
    let bytes = mount.read(FILE)?.unwrap_or_default();
    let mut memory = Memory::default();
    let mut at = 0;
    while let Some((record, length)) = Record::first(&bytes[at..]) {
        memory.take(record?);
        at += length;
    }
    if at < bytes.len() {
        mount.cut(FILE, at)?;
        mount.sync(FILE)?;
    }
    let holds = |committed: &LogId| memory.term_at(committed.index);
    memory.committed = memory
        .committed
        .filter(|committed| holds(committed) == Some(**committed.committed_leader_id()));
    Ok(memory)
}

/// The one that writes, until the log is dropped or the power fails.
struct Writer {
    mount: Mount,
    memory: Arc<Mutex<Memory>>,
    /// The newest one written: memory learns of it only after the sync.
    vote: Option<Vote>,
}

impl Writer {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        while let Some((mut records, waiter)) = commands.recv().await {
            let mut waiters = vec![waiter];
            while waiters.len() < GROUP
                && let Ok((more, waiter)) = commands.try_recv()
            {
                records.extend(more);
                waiters.push(waiter);
            }
            let stored = self.store(&records).await;
            for waiter in waiters {
                let result = if stored.is_ok() { Ok(()) } else { Err(stopped()) };
                match waiter {
                    Waiter::Append(callback) => callback.io_completed(result),
                    Waiter::Call(done) => drop(done.send(result)),
                    Waiter::Nobody => {}
                }
            }
            if stored.is_err() {
                return;
            }
        }
    }

    async fn store(&mut self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend(record.bytes()?);
            if let Record::Vote(vote) = record {
                self.vote = Some(*vote);
            }
        }
        self.mount.append(FILE, &bytes)?;
        SimRuntime::sleep(self.mount.sync_time()).await;
        self.mount.sync(FILE)?;
        let purges = records.iter().any(|record| matches!(record, Record::Purge(_)));
        if purges && self.mount.size(FILE)? > REWRITE {
            self.rewrite().await?;
        }
        Ok(())
    }

    /// The live records in a new file. What memory has and the old file lacks waits in the queue,
    /// and is written once more.
    async fn rewrite(&self) -> io::Result<()> {
        let mut bytes = Vec::new();
        {
            let memory = self.memory.lock();
            let purged = memory.purged.map(Record::Purge);
            for record in purged.into_iter().chain(self.vote.map(Record::Vote)) {
                bytes.extend(record.bytes()?);
            }
            for entry in memory.entries.values() {
                bytes.extend(Record::Entry(Box::new(entry.clone())).bytes()?);
            }
            if let Some(committed) = memory.committed {
                bytes.extend(Record::Committed(committed).bytes()?);
            }
        }
        self.mount.cut(NEW, 0)?;
        self.mount.append(NEW, &bytes)?;
        SimRuntime::sleep(self.mount.sync_time()).await;
        self.mount.sync(NEW)?;
        self.mount.rename(NEW, FILE)?;
        self.mount.sync_folder()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start + 1,
            Bound::Unbounded => 0,
        };
        let entries = self.memory.lock();
        let from = entries.entries.range(start..);
        let inside = from.take_while(|(index, _)| range.contains(index));
        Ok(inside.map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory.lock();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if self.rules.forgets_vote {
            self.memory.lock().vote = Some(*vote);
        } else {
            self.call(vec![Record::Vote(*vote)]).await?;
            self.memory.lock().vote = Some(*vote);
        }
        let memory = self.memory.lock();
        if memory.leads(self.raft_id) {
            let term_at = |index| match memory.purged {
                Some(purged) if index < purged.index => None,
                _ => Some(memory.term_at(index)),
            };
            let term = vote.leader_id.term;
            self.observe(&Event::Leads { raft_id: self.raft_id, term, term_at: &term_at });
        }
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.memory.lock().committed = committed;
        if let Some(committed) = committed {
            self.send(vec![Record::Committed(committed)], Waiter::Nobody)?;
        }
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
        let mut records = Vec::new();
        for entry in entries {
            let mut memory = self.memory.lock();
            let before = memory.last();
            memory.entries.insert(entry.log_id.index, entry.clone());
            drop(memory);
            let raft_id = self.raft_id;
            self.observe(&Event::Appended { raft_id, entry: &entry, before });
            records.push(Record::Entry(Box::new(entry)));
        }
        self.send(records, Waiter::Append(callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let first_gone = last.map_or(0, |last| last.index + 1);
        let leads = {
            let mut memory = self.memory.lock();
            let goes = memory.entries.split_off(&first_gone);
            memory.leads(self.raft_id) && !goes.is_empty()
        };
        self.observe(&Event::Truncated { raft_id: self.raft_id, first_gone, leads });
        self.call(vec![Record::Truncate(first_gone)]).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut memory = self.memory.lock();
            memory.take(Record::Purge(upto));
        }
        self.call(vec![Record::Purge(upto)]).await
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's writer has stopped")
}
