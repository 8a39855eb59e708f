//! Which labs exist on this machine and whether someone still owns them.
//!
//! One file per prefix in `/run/shoal-lab`, holding the lab's workspace. The owner of a lab that
//! ends with its process keeps the file locked: a lab whose file is unlocked and whose owner was
//! no user at a prompt was left behind by a crash.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::{DEFAULT_PREFIX, Lab};

const DIR: &str = "/run/shoal-lab";

/// Takes the ownership of a prefix, or says that a living process has it.
pub(super) fn own(lab: &Lab) -> Result<Flock<File>> {
    match lock(&path(lab.prefix())) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => bail!("a lab named {:?} is in use by another process", lab.prefix()),
        Err(error) => Err(error),
    }
}

/// Records where the lab's files are.
pub(super) fn add(lab: &Lab) -> Result<()> {
    fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR} (root?)"))?;
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(path(lab.prefix()))
        .with_context(|| format!("cannot write {} (root?)", path(lab.prefix()).display()))?;
    file.write_all(lab.root.as_os_str().as_encoded_bytes())?;
    Ok(())
}

/// Forgets a lab; the folder goes with the last one.
pub(super) fn remove(prefix: &str) {
    let _ = fs::remove_file(path(prefix));
    let _ = fs::remove_dir(DIR);
}

/// Labs of this workspace that nobody owns any more, the user's own one left out.
///
/// # Errors
/// The registry cannot be read.
pub fn orphans(root: &Path) -> Result<Vec<Lab>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(DIR) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        let prefix = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = fs::read(&path).is_ok_and(|text| text == root.as_os_str().as_encoded_bytes());
        if prefix != DEFAULT_PREFIX && ours && lock(&path)?.is_some() {
            found.push(Lab::new(root, &prefix, 1)?);
        }
    }
    Ok(found)
}

/// Whether a living process owns the prefix.
///
/// # Errors
/// The registry cannot be read.
pub fn is_owned(prefix: &str) -> Result<bool> {
    Ok(path(prefix).exists() && lock(&path(prefix))?.is_none())
}

fn path(prefix: &str) -> PathBuf {
    Path::new(DIR).join(prefix)
}

fn lock(path: &Path) -> Result<Option<Flock<File>>> {
    fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR} (root?)"))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {} (root?)", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}
