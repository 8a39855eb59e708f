//! The thread that owns the log's file: groups what waits into one commit, and never gives up.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{error, info};

use super::{COMMITTED, Command, Memory, OpenError, Opener, PURGED, VOTE, Waiter, Write, stopped};
use crate::types::{Entry, LogId, decode, encode};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Commands in one commit. More would only delay the first of them.
const GROUP: usize = 256;
/// Between two tries to write to a disk that refuses: soon after space is freed, yet no busy loop.
const RETRY: Duration = Duration::from_millis(500);

/// The thread that owns the file.
pub(super) struct Writer {
    opener: Opener,
    /// `None` after a failure: redb wants the file opened anew, which undoes a half-made commit.
    database: Option<Database>,
    memory: Arc<Mutex<Memory>>,
    trouble: watch::Sender<Option<String>>,
}

impl Writer {
    pub(super) fn new(
        opener: Opener,
        database: Database,
        memory: Arc<Mutex<Memory>>,
        trouble: watch::Sender<Option<String>>,
    ) -> Self {
        Self { opener, database: Some(database), memory, trouble }
    }

    /// Until the last [`LogStore`](super::LogStore) is dropped.
    pub(super) fn run(mut self, commands: &mpsc::Receiver<Command>) {
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
pub(super) fn load(database: &Database) -> Result<Memory, OpenError> {
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
