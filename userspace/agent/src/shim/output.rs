//! A task's output in a file that cannot fill the disk.
//!
//! Past a limit the file becomes `output.log.1`, replacing the one before, and a new one starts.
//! A write that fails loses output, never the task: a full disk must not stop a service.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::protocol::{OUTPUT, OUTPUT_OLD};

/// Bytes that a file may grow to.
pub(super) const LIMIT: u64 = 10 << 20;

/// The file that the output goes to.
#[derive(Debug)]
pub(super) struct Output {
    dir: PathBuf,
    file: File,
    bytes: u64,
    limit: u64,
    /// Whether a loss was complained about already: once is enough.
    lost: bool,
}

impl Output {
    /// Opens the file in `dir` and goes on at its end.
    pub(super) fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(dir.join(OUTPUT))?;
        let bytes = file.metadata()?.len();
        Ok(Self { dir: dir.to_owned(), file, bytes, limit, lost: false })
    }

    /// Appends; complains once on standard error when it cannot.
    pub(super) fn append(&mut self, data: &[u8]) {
        match self.try_append(data) {
            Ok(()) => self.lost = false,
            Err(error) if !self.lost => {
                self.lost = true;
                eprintln!("output is lost: {error}");
            }
            Err(_) => {}
        }
    }

    fn try_append(&mut self, data: &[u8]) -> io::Result<()> {
        let length = u64::try_from(data.len()).expect("a length fits in 64 bits");
        if self.bytes > 0 && self.bytes + length > self.limit {
            fs::rename(self.dir.join(OUTPUT), self.dir.join(OUTPUT_OLD))?;
            let next = Self::open(&self.dir, self.limit)?;
            *self = Self { lost: self.lost, ..next };
        }
        self.file.write_all(data)?;
        self.bytes += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_kept_once_and_a_new_one_starts() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::open(dir.path(), 10).unwrap();
        for text in ["12345", "67890", "abc", "defghijkl", "m"] {
            output.append(text.as_bytes());
        }
        let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read(OUTPUT_OLD).as_str(), read(OUTPUT).as_str()), ("abc", "defghijklm"));
        // A new shim goes on where the file ends.
        Output::open(dir.path(), 10).unwrap().append(b"n");
        assert_eq!((read(OUTPUT_OLD).as_str(), read(OUTPUT).as_str()), ("defghijklm", "n"));
    }
}
