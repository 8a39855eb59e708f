//! The thread that owns the log's file: groups what waits into one commit, and never gives up.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{error, info};

use super::{
    Beginning, COMMITTED, Command, FORMAT, Memory, OWNER, OpenError, PURGED, Place, VERSION, VOTE,
    Waiter, Write, stopped,
};
use crate::identity::Identity;
use crate::types::{Entry, LogId, decode, encode};
use crate::vault::Vault;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Commands in one commit. More would only delay the first of them.
const GROUP: usize = 256;
/// Between two tries to write to a disk that refuses: soon after space is freed, yet no busy loop.
const RETRY: Duration = Duration::from_millis(500);

/// The thread that owns the file.
pub(super) struct Writer {
    pub(super) place: Box<dyn Place>,
    /// `None` after a failure: redb wants the file opened anew, which undoes a half-made commit.
    pub(super) database: Option<Database>,
    /// Holds all that the file holds, and what waits to be written.
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) vault: Vault,
    pub(super) owner: Identity,
    pub(super) trouble: watch::Sender<Option<String>>,
}

impl Writer {
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
                }
            }
            if Arc::strong_count(&self.memory) == 1 {
                return false;
            }
            thread::sleep(RETRY);
        }
    }

    /// Tries once.
    pub(super) fn commit(&mut self, writes: &[Write]) -> Result<(), redb::Error> {
        let stored = self.try_commit(writes);
        if stored.is_err() {
            self.database = None;
        }
        stored
    }

    fn try_commit(&mut self, writes: &[Write]) -> Result<(), redb::Error> {
        if self.database.is_none() && self.place.is_doubtful() {
            self.renew()?;
            info!("the Raft log was written anew after a flush that failed");
        }
        let database = match &mut self.database {
            Some(database) => database,
            closed => closed.insert(self.place.open()?),
        };
        let committed = self.memory.lock().committed;
        commit(database, &self.vault, committed, writes)
    }

    /// Writes the file anew. Memory may hold more than was acknowledged; what waits comes again.
    fn renew(&self) -> Result<(), redb::Error> {
        let (beginning, entries, committed) = {
            let memory = self.memory.lock();
            let Memory { vote, purged, committed, .. } = *memory;
            let entries: Vec<Entry> = memory.entries.values().cloned().collect();
            (Beginning { owner: self.owner.clone(), purged, vote }, entries, committed)
        };
        let rows = entries.iter().map(|entry| Ok((entry.log_id.index, encode(entry)?)));
        let rows = rows.collect::<io::Result<_>>()?;
        let writes = [Write::Restart(Box::new(beginning)), Write::Entries(rows)];
        let database = self.place.fresh()?;
        commit(&database, &self.vault, None, &writes)?;
        commit(&database, &self.vault, committed, &[])?;
        drop(database);
        Ok(self.place.replace()?)
    }
}

/// Stores a group in one transaction and flushes it. What is sealed is sealed here, in the order in
/// which it is written: after [`Write::Reseal`] nothing comes under an older key.
pub(super) fn commit(
    database: &Database,
    vault: &Vault,
    committed: Option<LogId>,
    writes: &[Write],
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut log = transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        let committed = committed.and_then(|committed| encode(&committed).ok());
        if let Some(bytes) = committed {
            meta.insert(COMMITTED, vault.seal(&field(COMMITTED), &bytes).as_slice())?;
        }
        for write in writes {
            match write {
                Write::Entries(entries) => {
                    for (index, bytes) in entries {
                        log.insert(index, vault.seal(&place(*index), bytes).as_slice())?;
                    }
                }
                Write::Meta(key, bytes) => {
                    meta.insert(*key, vault.seal(&field(key), bytes).as_slice())?;
                }
                Write::Truncate(first) => log.retain_in::<u64, _>(first.., |_, _| false)?,
                Write::Purge(last) => log.retain_in::<u64, _>(..=last, |_, _| false)?,
                Write::Reseal => reseal(vault, &mut log, &mut meta)?,
                Write::Restart(beginning) => {
                    log.retain(|_, _| false)?;
                    meta.retain(|_, _| false)?;
                    begin(vault, &mut meta, beginning)?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn begin(
    vault: &Vault,
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    beginning: &Beginning,
) -> Result<(), redb::Error> {
    let Beginning { owner, purged, vote } = beginning;
    let owner = (owner.node_id.as_str(), owner.raft_id);
    let fields = [
        (OWNER, Some(encode(&owner))),
        (PURGED, purged.as_ref().map(encode)),
        (VOTE, vote.as_ref().map(encode)),
    ];
    for (key, bytes) in fields {
        if let Some(bytes) = bytes {
            meta.insert(key, vault.seal(&field(key), &bytes?).as_slice())?;
        }
    }
    meta.insert(FORMAT, VERSION.to_le_bytes().as_slice())?;
    Ok(())
}

fn reseal(
    vault: &Vault,
    log: &mut Table<'_, u64, &'static [u8]>,
    meta: &mut Table<'_, &'static str, &'static [u8]>,
) -> Result<(), redb::Error> {
    let mut entries = Vec::new();
    for row in log.iter()? {
        let (index, sealed) = row?;
        entries.push((index.value(), again(vault, &place(index.value()), sealed.value())?));
    }
    for (index, sealed) in entries {
        log.insert(index, sealed.as_slice())?;
    }
    for key in [OWNER, VOTE, PURGED, COMMITTED] {
        let sealed = meta.get(key)?.map(|sealed| again(vault, &field(key), sealed.value()));
        if let Some(sealed) = sealed {
            meta.insert(key, sealed?.as_slice())?;
        }
    }
    Ok(())
}

fn again(vault: &Vault, context: &str, sealed: &[u8]) -> io::Result<Vec<u8>> {
    let plain = vault.unseal(context, sealed).map_err(io::Error::other)?;
    Ok(vault.seal(context, &plain))
}

/// The place of an entry, as it is sealed for.
fn place(index: u64) -> String {
    format!("log/{index}")
}

/// The place of anything else.
fn field(key: &str) -> String {
    format!("meta/{key}")
}

/// Reads everything into memory.
pub(super) fn load(
    database: &Database,
    vault: &Vault,
    owner: &Identity,
) -> Result<Memory, OpenError> {
    let stored = read(database)?;
    match stored.format.as_deref().map(<[u8; 4]>::try_from) {
        Some(Ok(version)) if u32::from_le_bytes(version) == VERSION => {}
        Some(Ok(version)) => return Err(OpenError::Version(u32::from_le_bytes(version))),
        Some(Err(_)) | None => return Err(OpenError::Damaged("not a manager's log".into())),
    }
    let unsealed = |context: &str, bytes: &[u8]| {
        vault.unseal(context, bytes).map_err(|e| OpenError::Damaged(e.to_string()))
    };
    let [whose, vote, purged, committed] = stored.fields;
    let whose: (String, u64) = decode_some(OWNER, whose, unsealed)?.ok_or_else(no_owner)?;
    if whose != (owner.node_id.clone(), owner.raft_id) {
        let (node_id, raft_id) = whose;
        return Err(OpenError::Damaged(format!("the log of node {node_id} as manager {raft_id}")));
    }
    let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
    for (index, sealed) in stored.rows {
        let bytes = unsealed(&place(index), &sealed)?;
        entries.insert(index, decode(&bytes).map_err(damaged)?);
    }
    // A leader may know an index as committed before its own entry was flushed.
    let committed = decode_some(COMMITTED, committed, unsealed)?.filter(|committed: &LogId| {
        entries.get(&committed.index).is_some_and(|entry| entry.log_id == *committed)
    });
    let vote = decode_some(VOTE, vote, unsealed)?;
    let purged: Option<LogId> = decode_some(PURGED, purged, unsealed)?;
    if let Some(purged) = purged {
        // A file that was written anew may hold some that were to go next.
        entries = entries.split_off(&(purged.index + 1));
    }
    Ok(Memory { entries, vote, purged, committed })
}

/// Makes the log one of another release.
#[cfg(test)]
pub(super) fn set_format(database: &Database, version: u32) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(FORMAT, version.to_le_bytes().as_slice())?;
    Ok(transaction.commit()?)
}

/// What is in the file, still sealed.
struct Stored {
    rows: Vec<(u64, Vec<u8>)>,
    format: Option<Vec<u8>>,
    /// Owner, vote, purged and committed.
    fields: [Option<Vec<u8>>; 4],
}

fn read(database: &Database) -> Result<Stored, redb::Error> {
    let transaction = database.begin_read()?;
    let (log, meta) = match (transaction.open_table(LOG), transaction.open_table(META)) {
        (Ok(log), Ok(meta)) => (log, meta),
        (Err(TableError::TableDoesNotExist(_)), _) | (_, Err(TableError::TableDoesNotExist(_))) => {
            return Ok(Stored { rows: Vec::new(), format: None, fields: [const { None }; 4] });
        }
        (Err(failure), _) | (_, Err(failure)) => return Err(failure.into()),
    };
    let field = |key| -> Result<Option<Vec<u8>>, redb::Error> {
        Ok(meta.get(key)?.map(|value| value.value().to_vec()))
    };
    let mut rows = Vec::new();
    for row in log.iter()? {
        let (index, bytes) = row?;
        rows.push((index.value(), bytes.value().to_vec()));
    }
    let fields = [field(OWNER)?, field(VOTE)?, field(PURGED)?, field(COMMITTED)?];
    Ok(Stored { rows, format: field(FORMAT)?, fields })
}

fn decode_some<T: DeserializeOwned, P: AsRef<[u8]>>(
    key: &str,
    sealed: Option<Vec<u8>>,
    unsealed: impl Fn(&str, &[u8]) -> Result<P, OpenError>,
) -> Result<Option<T>, OpenError> {
    let Some(sealed) = sealed else { return Ok(None) };
    let bytes = unsealed(&field(key), &sealed)?;
    decode(bytes.as_ref()).map(Some).map_err(damaged)
}

fn no_owner() -> OpenError {
    OpenError::Damaged("it does not say whose log it is".into())
}

fn damaged(reason: io::Error) -> OpenError {
    OpenError::Damaged(reason.to_string())
}
