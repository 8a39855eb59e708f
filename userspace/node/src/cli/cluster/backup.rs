//! `shoal backup`: all that a manager knows, in one sealed file.
//!
//! The file appears whole or not at all. Its key is printed once, or kept in a file.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use shoal_api::BackupRequest;

use super::key;
use crate::cli::client::Client;
use crate::cli::say;

/// Flags and arguments of `shoal backup`.
#[derive(clap::Args)]
pub struct Args {
    /// File that has the backup's key, or gets the one that is made now; without it a new key is
    /// printed.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(short, long)]
    force: bool,
    /// File that the backup is written to.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Asks the daemon, writes the file and tells its key.
///
/// # Errors
/// A file that exists or cannot be written, or what the daemon answered; no file is left then.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    // Said before the manager is troubled; renaming looks again.
    ensure!(args.force || !args.file.exists(), already(&args.file));
    let known = args.key_file.as_deref().map(read_key).transpose()?.flatten();
    let request = BackupRequest { key: known.clone().unwrap_or_default() };
    let mut pieces = client.local().await?.backup(request).await?.into_inner();
    let mut partial = Partial::new(&args.file)?;
    let mut made = String::new();
    while let Some(piece) = pieces.message().await? {
        if !piece.key.is_empty() {
            made = piece.key;
        }
        partial.write(&piece.data)?;
    }
    ensure!(!made.is_empty() || known.is_some(), "the daemon answered without the backup's key");
    match (&known, &args.key_file) {
        (None, Some(path)) => {
            write_key(path, &made)?;
            partial.finish(args.force).inspect_err(|_| {
                // Nothing was sealed with it.
                let _ = std::fs::remove_file(path);
            })?;
        }
        _ => partial.finish(args.force)?,
    }
    say(&text(&args.file, args.key_file.as_deref(), &made));
    Ok(())
}

fn text(file: &Path, key_file: Option<&Path>, key: &str) -> String {
    let file = file.display();
    match key_file {
        Some(key_file) => {
            let key_file = key_file.display();
            format!(
                "Backup written to {file}; its key is in {key_file}. Keep them apart: both \
                 together are the whole cluster.\n"
            )
        }
        None => format!("Backup written to {file}.\n\n{}", key::backup_text(key)),
    }
}

/// The key that a file holds; `None` when there is no such file.
///
/// # Errors
/// It cannot be read, or is empty.
pub(super) fn read_key(path: &Path) -> anyhow::Result<Option<String>> {
    let shown = path.display();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => bail!("cannot read the key file {shown}: {error}"),
    };
    let mut text = String::new();
    // Longer than any key.
    let read = file.take(4096).read_to_string(&mut text);
    read.with_context(|| format!("cannot read the key file {shown}"))?;
    ensure!(!text.trim().is_empty(), "the key file {shown} is empty");
    Ok(Some(text.trim().to_owned()))
}

fn write_key(path: &Path, key: &str) -> anyhow::Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(format!("{key}\n").as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write the key file {}", path.display()))
}

fn already(file: &Path) -> String {
    format!("{} exists already: give another name, or --force to replace it", file.display())
}

/// A file that does not have its name yet, and goes unless it gets it.
struct Partial {
    file: File,
    path: PathBuf,
    /// Where it is to be.
    target: PathBuf,
}

impl Partial {
    fn new(target: &Path) -> anyhow::Result<Self> {
        let name = target.file_name().context("the backup needs a file name")?;
        let name = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let path = target.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot write {}", target.display()))?;
        Ok(Self { file, path, target: target.to_owned() })
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self.file.write_all(bytes);
        written.with_context(|| format!("cannot write {}", self.target.display()))
    }

    /// Gives it its name, on disk.
    fn finish(self, replace: bool) -> anyhow::Result<()> {
        let outcome = self.file.sync_all().and_then(|()| self.rename(replace));
        outcome.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => anyhow::anyhow!(already(&self.target)),
            _ => anyhow::Error::from(error)
                .context(format!("cannot write {}", self.target.display())),
        })
    }

    fn rename(&self, replace: bool) -> std::io::Result<()> {
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &self.target, flags) {
            Ok(()) => {}
            // Some file systems do not know the flag.
            Err(nix::errno::Errno::EINVAL) if !self.target.exists() => {
                std::fs::rename(&self.path, &self.target)?;
            }
            Err(nix::errno::Errno::EINVAL) => return Err(ErrorKind::AlreadyExists.into()),
            Err(error) => return Err(error.into()),
        }
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already where it got its name.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        std::fs::read_dir(dir).unwrap().map(name).collect()
    }

    #[test]
    fn a_backup_gets_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("b");
        let mut partial = Partial::new(&target).unwrap();
        partial.write(b"one").unwrap();
        assert!(!target.exists());
        partial.write(b"two").unwrap();
        partial.finish(false).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"onetwo");
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["b"]);
    }

    #[test]
    fn a_backup_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(Partial::new(&dir.path().join("b")).unwrap());
        assert_eq!(names(dir.path()), Vec::<String>::new());
        let missing = dir.path().join("no/such/b");
        let error = Partial::new(&missing).err().unwrap();
        assert_eq!(error.to_string(), format!("cannot write {}", missing.display()));
    }

    #[test]
    fn a_file_that_exists_is_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("b");
        std::fs::write(&target, "old").unwrap();
        let error = Partial::new(&target).unwrap().finish(false).unwrap_err().to_string();
        assert_eq!(error, already(&target));
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        Partial::new(&target).unwrap().finish(true).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"");
        assert_eq!(names(dir.path()), ["b"]);
    }

    #[test]
    fn a_key_file_is_read_or_made_but_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert_eq!(read_key(&path).unwrap(), None);
        write_key(&path, "SHBKP-1-a").unwrap();
        assert_eq!(read_key(&path).unwrap().as_deref(), Some("SHBKP-1-a"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_key(&path, "SHBKP-1-b").is_err());
        std::fs::write(&path, " \n").unwrap();
        let error = read_key(&path).unwrap_err().to_string();
        assert_eq!(error, format!("the key file {} is empty", path.display()));
    }

    #[test]
    fn a_key_is_printed_only_where_no_file_keeps_it() {
        let printed = text(Path::new("b"), None, "SHBKP-1-a");
        assert_eq!(
            printed,
            "Backup written to b.\n\n\
             To restore from this backup, run the `shoal restore` command and provide\n\
             the following key:\n\n    SHBKP-1-a\n\n\
             Remember to store this key in a password manager, since without it the\n\
             backup cannot be read.\n"
        );
        let kept = text(Path::new("b"), Some(Path::new("k")), "SHBKP-1-a");
        assert!(!kept.contains("SHBKP"), "{kept}");
    }
}
