//! The log on a disk whose power is cut: what was acknowledged is there, and the rest whole or not.
//!
//! The disk under redb keeps what was flushed. Of all writes since, any may be missing, they may
//! have reached the platter in any order, and each may be torn at any byte. A group of writes that
//! was not acknowledged may be there, but only as a whole.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use parking_lot::Mutex;
use redb::{Database, StorageBackend};
use shoal_api::id::IdSource;
use shoal_api::{Batch, Service};

use super::writer::{commit, load};
use super::*;
use crate::types::Proposal;

/// The disk. Clones share it.
#[derive(Clone, Debug)]
struct PowerDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    chance: IdSource,
    flushed: Vec<u8>,
    written: Vec<u8>,
    pending: Vec<Pending>,
    /// Writes and flushes until the power is cut.
    left: u64,
    /// Writes that a cut has lost or torn.
    harmed: u64,
    /// Flushes that will fail.
    failing: u64,
    /// One has failed.
    failed: bool,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl PowerDisk {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            chance: IdSource::new(seed),
            flushed: Vec::new(),
            written: Vec::new(),
            pending: Vec::new(),
            left: u64::MAX,
            harmed: 0,
            failing: 0,
            failed: false,
        })))
    }

    fn cut_after(&self, steps: u64) {
        self.0.lock().left = steps;
    }

    /// The power is back: what is on the platter now is all that there is.
    fn power_on(&self) {
        let mut state = self.0.lock();
        let mut pending = std::mem::take(&mut state.pending);
        let mut image = std::mem::take(&mut state.flushed);
        while !pending.is_empty() {
            let next = below(&mut state.chance, pending.len());
            let mut write = pending.swap_remove(next);
            match (below(&mut state.chance, 3), &mut write) {
                // One in three is lost, one in three is torn.
                (0, _) => {
                    state.harmed += 1;
                    continue;
                }
                (1, Pending::Write(_, bytes)) => {
                    let kept = below(&mut state.chance, bytes.len() + 1);
                    bytes.truncate(kept);
                    state.harmed += 1;
                }
                _ => {}
            }
            apply(&mut image, &write);
        }
        state.written = image.clone();
        state.flushed = image;
        state.left = u64::MAX;
    }

    fn step(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.0.lock();
        if state.left == 0 {
            return Err(io::Error::other("the power is cut"));
        }
        state.left -= 1;
        Ok(state)
    }

    fn open(&self) -> Result<Database, redb::Error> {
        Ok(Database::builder().set_cache_size(1 << 20).create_with_backend(self.clone())?)
    }
}

fn apply(image: &mut Vec<u8>, write: &Pending) {
    match write {
        Pending::Length(length) => image.resize(*length, 0),
        Pending::Write(offset, bytes) => {
            let end = offset + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*offset..end].copy_from_slice(bytes);
        }
    }
}

fn below(chance: &mut IdSource, limit: usize) -> usize {
    let limit = u64::try_from(limit).expect("a small number");
    usize::try_from(chance.next_u64() % limit).expect("below a small number")
}

impl StorageBackend for PowerDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.0.lock().written.len()).expect("a small disk"))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let state = self.0.lock();
        let bytes = state.written.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let write = Pending::Length(usize::try_from(len).map_err(io::Error::other)?);
        let mut state = self.step()?;
        apply(&mut state.written, &write);
        state.pending.push(write);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.step()?;
        let mut pending = std::mem::take(&mut state.pending);
        if state.failing > 0 {
            // What was written may be on the platter or not; it is shown as if it were.
            state.failing -= 1;
            state.failed = true;
            pending.retain(|_| below(&mut state.chance, 2) == 0);
            for write in &pending {
                apply(&mut state.flushed, write);
            }
            return Err(io::Error::other("the disk failed"));
        }
        for write in &pending {
            apply(&mut state.flushed, write);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut state = self.step()?;
        // The cut can come in the middle of a write.
        let last = state.left == 0;
        let kept = if last { below(&mut state.chance, data.len() + 1) } else { data.len() };
        let write = Pending::Write(offset, data[..kept].to_vec());
        apply(&mut state.written, &write);
        state.pending.push(write);
        if last { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }
}

/// What a log should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    term: u64,
}

impl Model {
    fn last(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or_else(|| self.purged.map(|purged| purged.index)).unwrap_or(0)
    }

    /// Draws one thing that Raft does with its log, does it here, and gives it for the disk.
    fn draw(&mut self, chance: &mut IdSource) -> Vec<Write> {
        match below(chance, 8) {
            0 => {
                self.term += 1;
                let vote = Vote::new(self.term, chance.next_u64() % 5);
                self.vote = Some(vote);
                vec![Write::Meta(VOTE, encode(&vote).unwrap())]
            }
            1 if !self.entries.is_empty() => {
                let places: Vec<u64> = self.entries.keys().copied().collect();
                let first = places[below(chance, places.len())];
                self.entries.split_off(&first);
                vec![Write::Truncate(first)]
            }
            2 if self.entries.len() > 10 => {
                let places: Vec<u64> = self.entries.keys().copied().collect();
                let last = places[below(chance, places.len() / 2)];
                let purged = self.entries[&last].log_id;
                self.entries = self.entries.split_off(&(last + 1));
                self.purged = Some(purged);
                vec![Write::Meta(PURGED, encode(&purged).unwrap()), Write::Purge(last)]
            }
            3 if below(chance, 4) == 0 => vec![Write::Reseal],
            _ => {
                let mut rows = Vec::new();
                for index in self.last() + 1..=self.last() + 1 + chance.next_u64() % 4 {
                    let size = [10, 300, 1_000, 9_000][below(chance, 4)];
                    let service = Service { id: "s".repeat(size), ..Service::default() };
                    let batch = Batch { changes: vec![service.put()], now_ns: index };
                    let log_id = LogId { leader_id: self.term.into(), index };
                    let entry = Entry::new(log_id, EntryPayload::Normal(Proposal(batch)));
                    rows.push((index, encode(&entry).unwrap()));
                    self.entries.insert(index, entry);
                }
                vec![Write::Entries(rows)]
            }
        }
    }
}

/// A log on a disk under a seed, through several power cuts. Gives cuts and harmed writes.
fn run(seed: u64, vault: &Vault, owner: &Identity) -> (u64, u64) {
    let mut chance = IdSource::new(seed ^ 0x5EED);
    let disk = PowerDisk::new(seed);
    let beginning = Beginning { owner: owner.clone(), purged: None, vote: None };
    let database = disk.open().unwrap();
    commit(&database, vault, None, &[Write::Restart(Box::new(beginning))]).unwrap();
    drop(database);
    let mut model = Model::default();
    let mut cuts = 0;
    for _ in 0..3 {
        disk.cut_after(5 + chance.next_u64() % 60);
        // Opening after a cut repairs the file, and may be cut itself.
        let mut next = model.clone();
        if let Ok(database) = disk.open() {
            for _ in 0..20 {
                next = model.clone();
                let writes: Vec<Write> =
                    (0..=below(&mut chance, 3)).flat_map(|_| next.draw(&mut chance)).collect();
                if commit(&database, vault, None, &writes).is_err() {
                    cuts += 1;
                    break;
                }
                model = next.clone();
            }
            drop(database);
        }
        disk.power_on();
        let database = disk.open().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let found = load(&database, vault, owner).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let Memory { entries, vote, purged, .. } = found;
        let is =
            |model: &Model| (&model.entries, model.vote, model.purged) == (&entries, vote, purged);
        assert!(is(&model) || is(&next), "seed {seed}: neither what was acknowledged nor the next");
        if !is(&model) {
            model = next;
        }
    }
    let harmed = disk.0.lock().harmed;
    (cuts, harmed)
}

/// Runs some seeds; several tests share the work of the machine's cores.
fn check(seeds: std::ops::Range<u64>) {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), None).unwrap();
    let owner = Identity { node_id: "n1".into(), raft_id: 1 };
    let runs = seeds.end - seeds.start;
    let (mut cuts, mut harmed) = (0, 0);
    for seed in seeds {
        let (more, lost) = run(seed, &vault, &owner);
        cuts += more;
        harmed += lost;
    }
    assert!(cuts > runs && harmed > runs * 3, "{cuts} cuts and {harmed} lost or torn writes");
}

#[test]
fn a_power_cut_keeps_what_was_acknowledged_and_no_half_of_the_rest() {
    check(0..110);
}

#[test]
fn a_power_cut_keeps_what_was_acknowledged_under_more_seeds() {
    check(110..220);
}

/// A disk whose flushes fail, and another one for the file that is written anew.
struct FailingPlace {
    disk: Arc<Mutex<PowerDisk>>,
    next: Arc<Mutex<Option<PowerDisk>>>,
    /// Whether anybody looks at what a flush said.
    looks: bool,
}

impl Place for FailingPlace {
    fn open(&self) -> Result<Database, redb::Error> {
        self.disk.lock().open()
    }
    fn fresh(&self) -> Result<Database, redb::Error> {
        let disk = PowerDisk::new(self.disk.lock().0.lock().chance.next_u64());
        *self.next.lock() = Some(disk.clone());
        disk.open()
    }
    fn replace(&self) -> io::Result<()> {
        *self.disk.lock() = self.next.lock().take().unwrap();
        Ok(())
    }
    fn is_doubtful(&self) -> bool {
        self.looks && self.disk.lock().0.lock().failed
    }
}

/// Whether a log whose flushes fail now and then has all that was acknowledged after a power cut.
fn keeps(seed: u64, looks: bool, vault: &Vault, owner: &Identity) -> bool {
    let mut chance = IdSource::new(seed ^ 0xF1_05_4E_D0);
    let disk = Arc::new(Mutex::new(PowerDisk::new(seed)));
    let beginning = Beginning { owner: owner.clone(), purged: None, vote: None };
    let database = disk.lock().open().unwrap();
    commit(&database, vault, None, &[Write::Restart(Box::new(beginning))]).unwrap();
    let memory = Arc::new(Mutex::new(load(&database, vault, owner).unwrap()));
    let place = FailingPlace { disk: disk.clone(), next: Arc::default(), looks };
    let (trouble, _seen) = watch::channel(None);
    let mut writer = Writer {
        place: Box::new(place),
        database: Some(database),
        memory: memory.clone(),
        vault: vault.clone(),
        owner: owner.clone(),
        trouble,
    };
    let mut model = Model::default();
    for _ in 0..12 {
        let writes = model.draw(&mut chance);
        let Model { entries, vote, purged, .. } = model.clone();
        *memory.lock() = Memory { entries, vote, purged, committed: None };
        if below(&mut chance, 3) == 0 {
            disk.lock().0.lock().failing = 1 + chance.next_u64() % 2;
        }
        let mut tries = 0;
        while writer.commit(&writes).is_err() {
            tries += 1;
            if tries > 9 {
                return false;
            }
        }
    }
    drop(writer);
    disk.lock().power_on();
    let Ok(database) = disk.lock().open() else { return false };
    let Ok(Memory { entries, vote, purged, .. }) = load(&database, vault, owner) else {
        return false;
    };
    (&model.entries, model.vote, model.purged) == (&entries, vote, purged)
}

/// Of that many logs, those that lost something; redb panics on some that were torn.
fn lost(seeds: u64, looks: bool) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::create(folder.path(), None).unwrap();
    let owner = Identity { node_id: "n1".into(), raft_id: 1 };
    let kept = |seed| {
        let run = || keeps(seed, looks, &vault, &owner);
        catch_unwind(AssertUnwindSafe(run)).is_ok_and(|kept| kept)
    };
    (0..seeds).filter(|seed| !kept(*seed)).count()
}

#[test]
fn a_flush_that_failed_is_not_trusted_and_nothing_acknowledged_is_lost() {
    assert_eq!(lost(20, true), 0);
}

/// The model is worth something: who only tries again loses what was acknowledged.
#[test]
fn the_disk_of_these_tests_does_forget_what_a_failed_flush_was_to_keep() {
    assert!(lost(20, false) > 0);
}
