//! The system calls that have no safe wrapper elsewhere. All of the shim's unsafe code is here.
//!
//! The shim has one thread from start to end: that is what makes `fork` and the rest sound.
#![allow(unsafe_code, reason = "fork, capset, mount_setattr and sigaction have no safe wrapper")]

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid};

/// Forks. `None` in the child.
pub(super) fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: the shim has a single thread, so no lock can be held by another one, and the child
    // may go on as if it were the parent.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Gives every signal its default action and lets all through: an exec keeps ignored and blocked
/// ones, and Rust's start-up ignores SIGPIPE.
pub(super) fn reset_signals() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: the default action runs no code of ours.
            unsafe { sigaction(signal, &default) }?;
        }
    }
    SigSet::all().thread_unblock()
}

/// Marks every descriptor from `first` up so that an exec closes it.
pub(super) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: the call takes three integers and changes flags only.
    let rc = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the mount at `path` and all below it read-only and blind to device nodes (Linux 5.12).
pub(super) fn read_only_tree(path: &CStr) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: `path` ends in NUL and `attr` has the size that is passed; both outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`; the kernel takes two, low half first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64 bits of capabilities.
const CAP_VERSION: u32 = 0x2008_0522;

/// Capabilities that this process may use, as a mask.
pub(super) fn permitted_capabilities() -> io::Result<u64> {
    let mut header = CapHeader { version: CAP_VERSION, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 writes exactly two data structs, and both pointers outlive the call.
    let rc = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(data[1].permitted) << 32 | u64::from(data[0].permitted))
}

/// Keeps the capabilities in `mask` and gives all others up for good: effective and permitted sets
/// become `mask`, the bounding set shrinks to it, inheritable and ambient sets become empty.
pub(super) fn keep_capabilities(mask: u64) -> io::Result<()> {
    for capability in 0..64_u64 {
        if mask & 1 << capability != 0 {
            continue;
        }
        // SAFETY: the call takes integers only.
        let rc = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        let error = io::Error::last_os_error();
        // A number above the kernel's last capability is nothing to drop.
        if rc != 0 && error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    // SAFETY: the call takes integers only.
    let rc = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let half = |shift: u32| {
        let bits = u32::try_from(mask >> shift & u64::from(u32::MAX)).expect("32 bits are left");
        CapData { effective: bits, permitted: bits, inheritable: 0 }
    };
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads exactly two data structs, and both pointers outlive the call.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
