//! Replaces a file so that a crash or a power cut leaves the old one or the new one, each whole.
//!
//! Written beside the old one, flushed, renamed over it, and the folder flushed: only then is the
//! new one acknowledged. What lies in such a file, and whether it is sealed, is its owner's matter.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a disk can do; tests put one behind it whose power is cut.
pub trait Disk {
    /// An open file.
    type File: Write;

    /// An empty file that only its owner may read, in the place of any other of that name.
    ///
    /// # Errors
    /// The disk refused.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// The file's bytes last through a power cut from now on; its name need not.
    ///
    /// # Errors
    /// The disk refused.
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;

    /// Names in one folder change at once; which of them last through a power cut is not said yet.
    ///
    /// # Errors
    /// The disk refused.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// The names in the folder last through a power cut from now on.
    ///
    /// # Errors
    /// The disk refused.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Takes a file away; none is fine too.
    ///
    /// # Errors
    /// The disk refused.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Clone, Copy, Debug)]
pub struct Os;

impl Disk for Os {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(failure) if failure.kind() != io::ErrorKind::NotFound => Err(failure),
            _ => Ok(()),
        }
    }
}

/// Replaces the file at `path`, or makes it.
///
/// # Errors
/// The disk refused; the old file is there unharmed, or already the new one.
pub fn replace<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(disk, path, |file| file.write_all(bytes))
}

/// Replaces the file at `path` by what `fill` writes.
///
/// # Errors
/// As [`replace`], and whatever `fill` says.
pub fn replace_with<D: Disk>(
    disk: &D,
    path: &Path,
    fill: impl FnOnce(&mut D::File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = beside(path);
    let written = disk.create(&temporary).and_then(|mut file| {
        fill(&mut file)?;
        disk.sync(&mut file)
    });
    let placed = written.and_then(|()| disk.rename(&temporary, path));
    if let Err(refused) = placed {
        // A half-written file would only take up space that is missing already.
        drop(disk.remove(&temporary));
        return Err(refused);
    }
    disk.sync_folder(path.parent().expect("a file of ours lies in a folder of ours"))
}

/// The file's bytes; `None` where there is no such file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Makes a folder that only its owner may enter, and those above it.
///
/// # Errors
/// The disk refused.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // It may have been there, and open to others.
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => Os.sync_folder(parent),
        _ => Ok(()),
    }
}

/// Where a file is written before it takes its place.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
pub mod power;

#[cfg(test)]
mod tests {
    use super::power::PowerDisk;
    use super::*;

    #[test]
    fn a_file_is_its_owners_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        make_folder(&deep).unwrap();
        assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
        let path = deep.join("file");
        replace(&Os, &path, b"one").unwrap();
        replace(&Os, &path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 1);
        assert_eq!(read(&deep.join("none")).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file_and_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&Os, &path, b"old").unwrap();
        let full = replace_with(&Os, &path, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&path).unwrap().unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Cuts the power after each number of steps, under many seeds: what was acknowledged is there,
    /// and at any moment there is one whole file of those that were written.
    #[test]
    fn a_power_cut_leaves_one_whole_file_and_never_undoes_an_acknowledged_one() {
        let path = Path::new("/state/snapshot");
        let versions: Vec<Vec<u8>> =
            (1..=4_u8).map(|version| vec![version; 300 * usize::from(version)]).collect();
        let mut cuts = 0;
        for seed in 0..100 {
            for cut in 0..40 {
                let disk = PowerDisk::new(seed, Some(cut));
                let mut acknowledged = 0;
                for version in &versions {
                    if replace(&disk, path, version).is_err() {
                        cuts += 1;
                        break;
                    }
                    acknowledged += 1;
                }
                let found = disk.after_power_cut(path);
                let place = found.as_ref().map_or(Some(0), |bytes| {
                    versions.iter().position(|version| version == bytes).map(|place| place + 1)
                });
                let place = place.unwrap_or_else(|| {
                    panic!("seed {seed}, cut {cut}: {} torn bytes", found.unwrap_or_default().len())
                });
                assert!(place >= acknowledged, "seed {seed}, cut {cut}: {place} < {acknowledged}");
            }
        }
        assert!(cuts > 1_000, "{cuts}");
    }

    /// The model is worth something: without either flush it does find the loss.
    #[test]
    fn the_disk_of_these_tests_does_lose_what_is_not_flushed() {
        let path = Path::new("/state/file");
        let (mut torn, mut lost) = (0, 0);
        for seed in 0..200 {
            let disk = PowerDisk::new(seed, None);
            let mut file = disk.create(&beside(path)).unwrap();
            file.write_all(&[7; 5_000]).unwrap();
            disk.rename(&beside(path), path).unwrap();
            match disk.after_power_cut(path) {
                None => lost += 1,
                Some(bytes) if bytes != [7; 5_000] => torn += 1,
                Some(_) => {}
            }
        }
        assert!(torn > 20 && lost > 20, "torn {torn}, lost {lost}");
    }
}
