//! Where maps and links are kept while no process holds them.
//!
//! `maps/NAME`, `links/NAME-IFINDEX` and notes for [`vlan`](crate::vlan). The maps of another release are put aside as `maps-old`
//! until the first plan has filled the new ones: see [`Pins::put_aside`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::debug;

use crate::error::{Error, LoadError};
use crate::sys;

/// What the kernel itself puts into every bpffs.
const KERNELS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];

/// What the names of notes about VLAN offload begin with.
const VLAN_NOTE: &str = "rxvlan-";

/// The pin folder.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// Opens the folder, mounting a bpffs on it if it is on none.
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let bpffs = |cause| LoadError::Bpffs { dir: dir.to_owned(), cause };
        // On a bpffs, only folders can be made, and only there would it be found again.
        fs::create_dir_all(dir).map_err(bpffs)?;
        if !is_bpffs(dir).map_err(bpffs)? {
            mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .map_err(|error| bpffs(error.into()))?;
        }
        let pins = Self { dir: dir.to_owned() };
        for dir in [pins.maps(), pins.links()] {
            fs::create_dir_all(&dir).map_err(bpffs)?;
        }
        Ok(pins)
    }

    /// The folder as it is, without mounting or making anything. `None` if there is nothing.
    pub(crate) fn find(dir: &Path) -> Option<Self> {
        is_bpffs(dir).ok()?.then(|| Self { dir: dir.to_owned() })
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// No dot in the name: a bpffs refuses it.
    pub(crate) fn old_maps(&self) -> PathBuf {
        self.dir.join("maps-old")
    }

    /// Puts the maps of another release aside. The programs attached now keep forwarding with
    /// them until the links change over.
    pub(crate) fn put_aside(&self) -> Result<(), Error> {
        if self.old_maps().exists() {
            // A start that never came to its first plan left these: nothing forwards with them.
            remove_dir(&self.maps())?;
        } else {
            fs::rename(self.maps(), self.old_maps()).map_err(Error::io("put old maps aside"))?;
        }
        fs::create_dir_all(self.maps()).map_err(Error::io("make the folder for maps"))
    }

    /// Removes maps that nothing forwards with.
    pub(crate) fn remove_maps(&self) -> Result<(), Error> {
        remove_dir(&self.maps())?;
        fs::create_dir_all(self.maps()).map_err(Error::io("make the folder for maps"))
    }

    /// Whether maps of another release wait for the first plan.
    pub(crate) fn has_old(&self) -> bool {
        self.old_maps().exists()
    }

    pub(crate) fn forget_old(&self) -> Result<(), Error> {
        remove_dir(&self.old_maps())
    }

    /// Names of the pinned links.
    pub(crate) fn link_names(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(self.links()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list pinned links"))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.collect())
    }

    /// Detaches a pinned link's program and removes the pin.
    pub(crate) fn remove_link(&self, name: &str) -> Result<(), Error> {
        let pin = self.links().join(name);
        if let Err(error) = sys::detach_pinned(&pin) {
            // Its interface may be gone, and the program with it.
            debug!(%error, name, "detaching a pinned link");
        }
        ignore_missing(fs::remove_file(pin))
            .map_err(Error::io(format!("remove pinned link {name}")))
    }

    /// Notes that an interface's VLAN offload was on.
    pub(crate) fn note_vlan(&self, ifindex: u32) -> io::Result<()> {
        match fs::create_dir(self.dir.join(vlan_note(ifindex))) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Removes the note. False if there was none.
    pub(crate) fn take_vlan_note(&self, ifindex: u32) -> bool {
        fs::remove_dir(self.dir.join(vlan_note(ifindex))).is_ok()
    }

    /// Removes everything, and the mount if it is our own.
    pub(crate) fn remove_all(&self) -> Result<(), Error> {
        for link in self.link_names()? {
            self.remove_link(&link)?;
        }
        for dir in [self.links(), self.maps(), self.old_maps()] {
            remove_dir(&dir)?;
        }
        // Of interfaces that are gone.
        for entry in fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(VLAN_NOTE) {
                remove_dir(&entry.path())?;
            }
        }
        if is_mount_point(&self.dir).map_err(Error::io("look at the pin folder"))? {
            let others = fs::read_dir(&self.dir)
                .map_err(Error::io("list the pin folder"))?
                .filter_map(Result::ok)
                .any(|entry| !KERNELS_OWN.iter().any(|own| entry.file_name() == *own));
            if others {
                return Ok(());
            }
            nix::mount::umount(&self.dir)
                .map_err(|error| Error::io("unmount the bpffs")(error.into()))?;
        }
        // Whoever keeps other things in it keeps the folder.
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => ignore_missing(result).map_err(Error::io("remove the pin folder")),
        }
    }
}

fn vlan_note(ifindex: u32) -> String {
    format!("{VLAN_NOTE}{ifindex}")
}

fn is_bpffs(dir: &Path) -> io::Result<bool> {
    Ok(statfs(dir)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether a file system begins here; `/sys/fs/bpf` itself is never ours.
fn is_mount_point(dir: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = dir.parent().unwrap_or(dir);
    let begins = fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev();
    Ok(begins && dir != Path::new("/sys/fs/bpf"))
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    let what = || format!("remove {}", dir.display());
    ignore_missing(fs::remove_dir_all(dir)).map_err(Error::io(what()))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
