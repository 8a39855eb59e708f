//! A disk in memory whose power is cut: it keeps what was flushed and, of the rest, what chance keeps.
//!
//! Stricter than ext4: bytes of a file that were not flushed may be missing, cut off or zeros, and
//! any of the names that were not flushed may be the old ones. Renames of one folder keep their
//! order, as every journal of names does.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_api::id::IdSource;

use super::Disk;

/// The disk. Clones share it.
#[derive(Clone)]
pub struct PowerDisk(Arc<Mutex<State>>);

struct State {
    chance: IdSource,
    /// Steps until the power is cut; then nothing more happens and everything fails.
    left: Option<u32>,
    /// Contents by number: what is flushed, and what is written.
    contents: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names that last.
    flushed: BTreeMap<PathBuf, usize>,
    /// Changes of names since.
    pending: Vec<Change>,
}

enum Change {
    Put(PathBuf, usize),
    Move(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// An open file.
pub struct Open {
    disk: PowerDisk,
    number: usize,
}

impl PowerDisk {
    /// An empty disk.
    ///
    /// * `cut_after` - steps that it takes before the power is cut; none means never.
    pub fn new(seed: u64, cut_after: Option<u32>) -> Self {
        Self(Arc::new(Mutex::new(State {
            chance: IdSource::new(seed),
            left: cut_after,
            contents: Vec::new(),
            flushed: BTreeMap::new(),
            pending: Vec::new(),
        })))
    }

    /// What is under that name when the power is back.
    pub fn after_power_cut(&self, path: &Path) -> Option<Vec<u8>> {
        let state = &mut *self.0.lock();
        let mut names = state.flushed.clone();
        let kept = pick(&mut state.chance, state.pending.len() + 1);
        for change in &state.pending[..kept] {
            apply(&mut names, change);
        }
        let number = *names.get(path)?;
        let (flushed, written) = state.contents[number].clone();
        if flushed == written {
            return Some(flushed);
        }
        let cut = pick(&mut state.chance, written.len() + 1);
        let mut torn = written[..cut].to_vec();
        if state.chance.next_u64().is_multiple_of(2) {
            // The length was kept, the bytes were not.
            torn.resize(written.len(), 0);
        }
        Some(torn)
    }

    fn step(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.0.lock();
        match &mut state.left {
            Some(0) => return Err(io::Error::other("the power is cut")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: &Change) {
    match change {
        Change::Put(path, number) => drop(names.insert(path.clone(), *number)),
        Change::Move(from, to) => {
            if let Some(number) = names.remove(from) {
                names.insert(to.clone(), number);
            }
        }
        Change::Remove(path) => drop(names.remove(path)),
    }
}

fn pick(chance: &mut IdSource, below: usize) -> usize {
    let below = u64::try_from(below).expect("a small number");
    usize::try_from(chance.next_u64() % below).expect("below a small number")
}

impl Disk for PowerDisk {
    type File = Open;

    fn create(&self, path: &Path) -> io::Result<Open> {
        let mut state = self.step()?;
        let number = state.contents.len();
        state.contents.push((Vec::new(), Vec::new()));
        state.pending.push(Change::Put(path.into(), number));
        Ok(Open { disk: self.clone(), number })
    }

    fn sync(&self, file: &mut Open) -> io::Result<()> {
        let mut state = self.step()?;
        let (flushed, written) = &mut state.contents[file.number];
        *flushed = written.clone();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?.pending.push(Change::Move(from.into(), to.into()));
        Ok(())
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        for change in std::mem::take(&mut state.pending) {
            apply(&mut state.flushed, &change);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?.pending.push(Change::Remove(path.into()));
        Ok(())
    }
}

impl Write for Open {
    /// In pieces, so that a cut can come between two of them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.step()?;
        let piece = bytes.len().min(250);
        state.contents[self.number].1.extend(&bytes[..piece]);
        Ok(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
