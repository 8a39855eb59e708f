//! A host's disk: what was written is there until the power fails; what was synced, after that, too.
//!
//! A power failure keeps nothing of the unsynced writes, or all, or the first of them with the last
//! one torn, or some sectors of any of them in no order: all of these happen to real disks (Pillai
//! et al., "All file systems are not created equal", OSDI 2014, section 2). A rename is on the disk
//! after the folder was synced. A lying disk says that it has synced what
//! was appended, and has not. How long a write
//! takes is the caller's to wait.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::dice::Dice;

/// What a disk stores whole or not at all. Small, so that short records tear, too.
const SECTOR: usize = 64;

/// One host's disk.
#[derive(Default)]
pub(super) struct Disk(Mutex<State>);

#[derive(Default)]
struct State {
    files: BTreeMap<&'static str, File>,
    /// Not on the disk yet, in order.
    renames: Vec<(&'static str, &'static str)>,
    /// As the disk has them.
    stored: BTreeMap<&'static str, Vec<u8>>,
    /// Goes up with every power failure: who mounted the disk before has lost it.
    generation: u64,
    lies: bool,
    sync_time: Duration,
}

/// A file as those see it who have it open.
#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    /// Offset and bytes of what is not synced; `None` cuts the file to the offset.
    unsynced: Vec<(usize, Option<Vec<u8>>)>,
    /// As of the last sync.
    synced: Vec<u8>,
}

impl File {
    fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            put(&mut self.synced, offset, bytes.as_deref());
        }
    }

    /// What a power failure leaves.
    fn crash(&mut self, dice: &Dice) -> Loss {
        let unsynced = std::mem::take(&mut self.unsynced);
        if unsynced.is_empty() {
            return Loss::default();
        }
        let mut loss = Loss { lost: true, torn: false };
        match dice.below(4) {
            0 => {}
            1 => {
                for (offset, bytes) in unsynced {
                    put(&mut self.synced, offset, bytes.as_deref());
                }
                loss.lost = false;
            }
            2 => {
                let whole = usize::try_from(dice.below(unsynced.len() as u64)).unwrap_or(0);
                for (offset, bytes) in unsynced.iter().take(whole) {
                    put(&mut self.synced, *offset, bytes.as_deref());
                }
                if let (offset, Some(bytes)) = &unsynced[whole] {
                    let torn = usize::try_from(dice.below(bytes.len() as u64 + 1)).unwrap_or(0);
                    put(&mut self.synced, *offset, Some(&bytes[..torn]));
                    loss.torn = true;
                }
            }
            _ => {
                for (offset, bytes) in unsynced.iter() {
                    let Some(bytes) = bytes else { continue };
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if dice.one_in(2) {
                            put(&mut self.synced, offset + number * SECTOR, Some(sector));
                            loss.torn = true;
                        }
                    }
                }
            }
        }
        loss
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        content.truncate(offset);
        return;
    };
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// What a power failure did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    /// Unsynced writes are gone.
    pub(super) lost: bool,
    /// One is there in part.
    pub(super) torn: bool,
}

impl Disk {
    /// Opens the disk, until the power fails.
    pub(super) fn mount(self: &Arc<Self>) -> Mount {
        Mount { generation: self.0.lock().generation, disk: self.clone() }
    }

    pub(super) fn power_fails(&self, dice: &Dice) -> Loss {
        let mut state = self.0.lock();
        state.generation += 1;
        let mut loss = Loss::default();
        let renamed = dice.below(state.renames.len() as u64 + 1);
        let mut stored = std::mem::take(&mut state.stored);
        let mut files = std::mem::take(&mut state.files);
        for file in files.values_mut() {
            let here = file.crash(dice);
            loss.lost |= here.lost;
            loss.torn |= here.torn;
        }
        let renames = std::mem::take(&mut state.renames);
        for (name, file) in &files {
            // A file that took the place of another is there only if the rename is.
            if !renames.iter().any(|(_, to)| to == name) {
                stored.insert(name, file.synced.clone());
            }
        }
        for (number, (from, to)) in renames.iter().enumerate() {
            let Some(file) = files.get(to) else { continue };
            let name = if (number as u64) < renamed { to } else { from };
            stored.insert(name, file.synced.clone());
        }
        let as_stored = |content: &Vec<u8>| File {
            content: content.clone(),
            unsynced: Vec::new(),
            synced: content.clone(),
        };
        state.files = stored.iter().map(|(name, bytes)| (*name, as_stored(bytes))).collect();
        state.stored = stored;
        loss
    }

    /// A new disk in the place of this one.
    pub(super) fn wipe(&self) {
        let mut state = self.0.lock();
        let generation = state.generation + 1;
        *state = State { generation, ..State::default() };
    }

    /// From now on syncs return before anything is stored, or do not any more.
    pub(super) fn lie(&self, lies: bool) {
        self.0.lock().lies = lies;
    }

    /// Whether a power failure would lose something now.
    pub(super) fn has_unsynced(&self) -> bool {
        self.0.lock().files.values().any(|file| !file.unsynced.is_empty())
    }

    pub(super) fn set_sync_time(&self, sync_time: Duration) {
        self.0.lock().sync_time = sync_time;
    }
}

/// A disk as one start of a manager sees it: of no use after a power failure.
#[derive(Clone)]
pub(super) struct Mount {
    disk: Arc<Disk>,
    generation: u64,
}

impl Mount {
    pub(super) fn is_live(&self) -> bool {
        self.disk.0.lock().generation == self.generation
    }

    /// How long a sync takes now.
    pub(super) fn sync_time(&self) -> Duration {
        self.disk.0.lock().sync_time
    }

    pub(super) fn read(&self, name: &'static str) -> io::Result<Option<Vec<u8>>> {
        self.with(|state| state.files.get(name).map(|file| file.content.clone()))
    }

    pub(super) fn size(&self, name: &'static str) -> io::Result<usize> {
        self.with(|state| state.files.get(name).map_or(0, |file| file.content.len()))
    }

    /// Appends to a file, which is made if it is not there.
    pub(super) fn append(&self, name: &'static str, bytes: &[u8]) -> io::Result<()> {
        self.with(|state| {
            let file = state.files.entry(name).or_default();
            file.unsynced.push((file.content.len(), Some(bytes.to_vec())));
            file.content.extend_from_slice(bytes);
        })
    }

    pub(super) fn cut(&self, name: &'static str, length: usize) -> io::Result<()> {
        self.with(|state| {
            let file = state.files.entry(name).or_default();
            file.unsynced.push((length, None));
            file.content.truncate(length);
        })
    }

    pub(super) fn sync(&self, name: &'static str) -> io::Result<()> {
        self.with(|state| {
            let lies = state.lies;
            if let Some(file) = state.files.get_mut(name).filter(|_| !lies) {
                file.sync();
            }
        })
    }

    /// Gives a file the name of another, whose content goes.
    pub(super) fn rename(&self, from: &'static str, to: &'static str) -> io::Result<()> {
        self.with(|state| {
            if let Some(old) = state.files.get(to) {
                let synced = old.synced.clone();
                state.stored.insert(to, synced);
            }
            if let Some(file) = state.files.remove(from) {
                state.files.insert(to, file);
                state.renames.push((from, to));
            }
        })
    }

    /// Makes renames durable.
    pub(super) fn sync_folder(&self) -> io::Result<()> {
        self.with(|state| {
            for (from, to) in std::mem::take(&mut state.renames) {
                state.stored.remove(from);
                // What was renamed into its place is stored: only what is appended can be lost.
                if let Some(file) = state.files.get_mut(to) {
                    file.sync();
                }
            }
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.generation != self.generation {
            return Err(io::Error::other("the power failed"));
        }
        Ok(act(&mut state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crashed(seed: u64, write: impl Fn(&Mount)) -> Arc<Disk> {
        let disk = Arc::<Disk>::default();
        write(&disk.mount());
        disk.power_fails(&Dice::new(seed));
        disk
    }

    #[test]
    fn what_was_synced_survives_and_what_was_not_may_be_lost_or_torn() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let disk = crashed(seed, |mount| {
                mount.append("log", b"first").unwrap();
                mount.sync("log").unwrap();
                mount.append("log", &[7; 200]).unwrap();
            });
            let content = disk.mount().read("log").unwrap().unwrap();
            assert!(content.starts_with(b"first"));
            outcomes.insert(content);
        }
        let sizes: std::collections::BTreeSet<_> = outcomes.iter().map(Vec::len).collect();
        assert!(sizes.contains(&5) && sizes.contains(&205) && sizes.len() > 20, "{sizes:?}");
        let holed = |content: &Vec<u8>| content.len() == 205 && content[5..].contains(&0);
        assert!(outcomes.iter().any(holed), "a later sector without an earlier one");
    }

    #[test]
    fn a_rename_happens_or_does_not_until_the_folder_is_synced() {
        let renamed = |mount: &Mount| {
            mount.append("snapshot", b"old").unwrap();
            mount.sync("snapshot").unwrap();
            mount.append("snapshot.new", b"new").unwrap();
            mount.sync("snapshot.new").unwrap();
            mount.rename("snapshot.new", "snapshot").unwrap();
        };
        let read = |disk: &Arc<Disk>| disk.mount().read("snapshot").unwrap().unwrap();
        let seen: std::collections::BTreeSet<_> =
            (0..50).map(|seed| read(&crashed(seed, renamed))).collect();
        assert_eq!(seen, [b"new".to_vec(), b"old".to_vec()].into());
        for seed in 0..50 {
            let disk = crashed(seed, |mount| {
                renamed(mount);
                mount.sync_folder().unwrap();
            });
            assert_eq!(read(&disk), b"new");
        }
    }

    #[test]
    fn a_lying_disk_loses_what_it_said_it_had() {
        let lost = (0..50).any(|seed| {
            let disk = Arc::<Disk>::default();
            disk.lie(true);
            let mount = disk.mount();
            mount.append("log", b"first").unwrap();
            mount.sync("log").unwrap();
            disk.power_fails(&Dice::new(seed));
            disk.mount().read("log").unwrap().unwrap_or_default().is_empty()
        });
        assert!(lost);
    }

    #[test]
    fn who_had_the_disk_before_the_power_failed_has_it_no_more() {
        let disk = Arc::<Disk>::default();
        let mount = disk.mount();
        disk.power_fails(&Dice::new(1));
        assert!(!mount.is_live() && mount.append("log", b"late").is_err());
        assert!(disk.mount().is_live());
    }
}
