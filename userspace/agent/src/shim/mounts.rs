//! A task's view of the file system: its image read-only, and kernel file systems of its own.
//!
//! Runs in the task's new mount namespace. The first step cuts that namespace off from the host's,
//! so nothing that follows is seen there. The image is bound to a folder, made read-only with all
//! that is mounted below it, and becomes the root; what is mounted after that is resolved inside
//! the new root, so no symbolic link of an image can lead out of it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{chdir, getcwd, pivot_root};

use super::protocol::{Config, ROOT};
use super::sys;

/// Why the root could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    /// A call failed.
    #[error("{what}: {source}")]
    Call {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The image lacks a folder that a task cannot be without, and its root is read-only.
    #[error("the image has no folder {path}: make an empty one")]
    NoMountPoint {
        /// The folder.
        path: &'static str,
    },
}

/// Kernel file systems of the host: the task gets its own, or none.
const HOST_ONLY: [&str; 18] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];
/// Folders that the task gets its own of: what the host has mounted there is left behind, so that
/// a task does not keep, say, the host's named network namespaces alive.
const OWN: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];

/// Parts of `/proc` that act on the whole host: readable at most. Docker's list.
const PROC_READ_ONLY: [&str; 6] = ["asound", "bus", "fs", "irq", "sys", "sysrq-trigger"];
/// Parts of `/proc` and `/sys` that tell about the whole host. Docker's list.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Device nodes: name, major, minor.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Links below `/dev`: name, target.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes `config.root` the root of this process. The current folder is the task's.
pub(super) fn enter_root(config: &Config) -> Result<(), MountError> {
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    call("cut off the host's mounts", mount(none, "/", none, private, none))?;
    let bind = MsFlags::MS_REC | MsFlags::MS_BIND;
    let root = config.root.display();
    call(&format!("bind {root}"), mount(Some(&config.root), ROOT, none, bind, none))?;
    leave_host_mounts()?;
    sys::read_only_tree(c"root")
        .map_err(|source| MountError::Call { what: format!("make {root} read-only"), source })?;
    call("enter the root", chdir(ROOT))?;
    // The old root ends up on top of the new one and is taken off: no folder for it is needed.
    call("make it the root", pivot_root(".", "."))?;
    call("leave the host's root", umount2(".", MntFlags::MNT_DETACH))?;
    call("enter the root", chdir("/"))?;

    let old = umask(Mode::empty());
    let made = own_file_systems(config);
    umask(old);
    made
}

/// Takes off what is mounted below the new root and belongs to the host.
fn leave_host_mounts() -> Result<(), MountError> {
    let root = call("find the task's folder", getcwd())?.join(ROOT);
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|source| MountError::Call { what: "read the mount table".into(), source })?;
    let mut leave: Vec<PathBuf> = mounts_below(&table, &root)
        .filter(|(path, kind)| {
            let inside = path.strip_prefix(&root).expect("only paths below the root are listed");
            HOST_ONLY.contains(kind) || OWN.iter().any(|own| inside.starts_with(own))
        })
        .map(|(path, _)| path)
        .collect();
    // Deepest first, so that none is busy.
    leave.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in leave {
        let what = format!("leave {}", path.display());
        call(&what, umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW))?;
    }
    Ok(())
}

/// Mount points below `root` with their file system's type, from a `mountinfo` table.
fn mounts_below<'a>(
    table: &'a str,
    root: &Path,
) -> impl Iterator<Item = (PathBuf, &'a str)> + use<'a> {
    let root = root.to_owned();
    table.lines().filter_map(move |line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let path = unescape(mount.split(' ').nth(4)?);
        let kind = file_system.split(' ').next()?;
        (path != root && path.starts_with(&root)).then_some((path, kind))
    })
}

/// Reads `\040` and the like, as the kernel writes blanks in its mount table.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// `/proc`, `/dev`, `/sys`, `/tmp` and `/run` of the task's own.
fn own_file_systems(config: &Config) -> Result<(), MountError> {
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let read_only = closed | MsFlags::MS_RDONLY;

    need_folder("/proc")?;
    fresh("/proc", "proc", closed, "")?;
    dev()?;
    if Path::new("/sys").is_dir() {
        fresh("/sys", "sysfs", read_only, "")?;
    }
    for (path, options) in [("/tmp", "mode=1777"), ("/run", "mode=755")] {
        if is_real_folder(path) {
            fresh(path, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)?;
        }
    }
    for part in PROC_READ_ONLY {
        let path = format!("/proc/{part}");
        if Path::new(&path).exists() {
            let none = None::<&str>;
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            call(
                &format!("bind {path}"),
                mount(Some(path.as_str()), path.as_str(), none, bind, none),
            )?;
            again(&path, read_only)?;
        }
    }
    for path in MASKED.iter().map(Path::new).chain(config.hide.iter().map(PathBuf::as_path)) {
        mask(path)?;
    }
    Ok(())
}

/// `/dev`: a handful of harmless devices, and no way to add others.
fn dev() -> Result<(), MountError> {
    need_folder("/dev")?;
    let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    fresh("/dev", "tmpfs", sealed, "mode=755,size=64k")?;
    let mode = Mode::from_bits_truncate(0o666);
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        let device = makedev(major, minor);
        call(&format!("make {path}"), mknod(path.as_str(), SFlag::S_IFCHR, mode, device))?;
    }
    for (name, target) in LINKS {
        let path = format!("/dev/{name}");
        symlink(target, &path)
            .map_err(|source| MountError::Call { what: format!("make {path}"), source })?;
    }
    for path in ["/dev/pts", "/dev/shm"] {
        fs::create_dir(path)
            .map_err(|source| MountError::Call { what: format!("make {path}"), source })?;
    }
    fresh("/dev/pts", "devpts", sealed, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    let closed = sealed | MsFlags::MS_NODEV;
    fresh("/dev/shm", "tmpfs", closed, "mode=1777,size=64m")?;
    // Sealed: a task has `CAP_MKNOD`, and this is the one mount that knows devices.
    again("/dev", sealed | MsFlags::MS_RDONLY)
}

/// Covers a file with `/dev/null`, a folder with an empty one; nothing there is nothing to hide.
fn mask(path: &Path) -> Result<(), MountError> {
    let what = format!("hide {}", path.display());
    let none = None::<&str>;
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    if metadata.is_dir() {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        call(&what, mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("size=0")))
    } else {
        call(&what, mount(Some("/dev/null"), path, none, MsFlags::MS_BIND, none))
    }
}

/// Mounts a new file system.
fn fresh(path: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), MountError> {
    call(&format!("mount {path}"), mount(Some(kind), path, Some(kind), flags, Some(options)))
}

/// Changes the flags of a mount.
fn again(path: &str, flags: MsFlags) -> Result<(), MountError> {
    let none = None::<&str>;
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    call(&format!("remount {path}"), mount(none, path, none, flags, none))
}

fn need_folder(path: &'static str) -> Result<(), MountError> {
    if is_real_folder(path) { Ok(()) } else { Err(MountError::NoMountPoint { path }) }
}

/// Whether a folder is there, and not a link to one.
fn is_real_folder(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn call<T>(what: &str, result: Result<T, Errno>) -> Result<T, MountError> {
    result.map_err(|errno| MountError::Call { what: what.to_owned(), source: errno.into() })
}

/// Where the daemon's folder is inside an image, if the image holds it.
pub(crate) fn inside(image: &Path, host: &Path) -> Option<PathBuf> {
    let inside = host.strip_prefix(image).ok()?;
    (!inside.as_os_str().as_bytes().is_empty()).then(|| Path::new("/").join(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_root_are_seen_and_blanks_are_read() {
        let table = "22 27 0:21 / /a/root rw - ext4 /dev/vda rw\n\
                     23 27 0:22 / /a/root/mnt/my\\040disk rw shared:1 - nsfs nsfs rw\n\
                     24 27 0:22 / /a/rooted rw - sysfs sysfs rw\n";
        let found: Vec<_> = mounts_below(table, Path::new("/a/root")).collect();
        assert_eq!(found, [(PathBuf::from("/a/root/mnt/my disk"), "nsfs")]);
    }

    #[test]
    fn the_daemons_folder_is_found_inside_an_image_that_holds_it() {
        let check = |image: &str, host: &str, expected: Option<&str>| {
            let found = inside(Path::new(image), Path::new(host));
            assert_eq!(found, expected.map(PathBuf::from), "{host} in {image}");
        };
        check("/", "/var/lib/shoal", Some("/var/lib/shoal"));
        check("/var", "/var/lib/shoal", Some("/lib/shoal"));
        check("/srv", "/var/lib/shoal", None);
    }
}
