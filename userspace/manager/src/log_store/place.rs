//! Where a log's file lies, and how it is written anew when its disk did not keep it.
//!
//! A flush that failed must not be repeated: the system may have dropped what it could not write,
//! shows it as written nevertheless, and says yes to the next flush. After one, nothing that is read
//! back from the file counts; the log is written whole into another file, which then takes its
//! place. A write that was refused, as on a full disk, leaves no such doubt.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend};

use crate::files::{self, Disk, Os};

/// Where a log's file lies; tests put a failing disk there.
pub trait Place: Send {
    /// Opens the file.
    ///
    /// # Errors
    /// There is none, it is in use or none of ours, or the disk refused.
    fn open(&self) -> Result<Database, redb::Error>;

    /// An empty file beside it.
    ///
    /// # Errors
    /// The disk refused.
    fn fresh(&self) -> Result<Database, redb::Error>;

    /// Puts the file of [`Place::fresh`], which is closed by now, into the place of the other.
    ///
    /// # Errors
    /// The disk refused.
    fn replace(&self) -> io::Result<()>;

    /// Whether a flush of the file has failed.
    fn is_doubtful(&self) -> bool;
}

/// A file of the operating system.
pub struct OsPlace {
    path: PathBuf,
    doubtful: Arc<AtomicBool>,
}

impl OsPlace {
    /// The file at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), doubtful: Arc::default() }
    }
}

impl Place for OsPlace {
    fn open(&self) -> Result<Database, redb::Error> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        if file.metadata()?.len() == 0 {
            // It would be made a new database.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an empty file").into());
        }
        let file = FileBackend::new(file).map_err(redb::Error::from)?;
        let watched = Watched { file, doubtful: self.doubtful.clone() };
        Ok(Database::builder().create_with_backend(watched)?)
    }

    fn fresh(&self) -> Result<Database, redb::Error> {
        Ok(Database::builder().create_file(make(&files::beside(&self.path))?)?)
    }

    fn replace(&self) -> io::Result<()> {
        Os.rename(&files::beside(&self.path), &self.path)?;
        Os.sync_folder(self.path.parent().expect("a log lies in a folder"))?;
        self.doubtful.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::SeqCst)
    }
}

/// A new file in the place of any other, for its owner's eyes only.
///
/// # Errors
/// The disk refused.
pub fn make(path: &Path) -> io::Result<File> {
    Os.remove(path)?;
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// A file that remembers whether a flush has failed.
#[derive(Debug)]
struct Watched {
    file: FileBackend,
    doubtful: Arc<AtomicBool>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| self.doubtful.store(true, Ordering::SeqCst))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
