//! What a task may do: root by number, with Docker's default capabilities and no way to more.
//!
//! Capabilities and their order: the kernel's `include/uapi/linux/capability.h`. The set is the
//! one that Docker gives without `--cap-add`. `CAP_MKNOD` is of no use to open a device: every
//! mount that a task can write to refuses device nodes.

use std::io;

use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::sys;

/// Numbers of the capabilities that stay.
const DEFAULT_CAPABILITIES: [u8; 14] = [
    0,  // chown
    1,  // dac_override
    3,  // fowner
    4,  // fsetid
    5,  // kill
    6,  // setgid
    7,  // setuid
    8,  // setpcap
    10, // net_bind_service
    13, // net_raw
    18, // sys_chroot
    27, // mknod
    29, // audit_write
    31, // setfcap
];

/// Gives up everything that a task must not have. The last step before the exec.
pub(super) fn drop_privileges() -> io::Result<()> {
    setgroups(&[Gid::from_raw(0)])?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    let wanted = DEFAULT_CAPABILITIES.iter().fold(0, |mask, number| mask | 1_u64 << number);
    // A daemon that lacks some itself passes on what it has.
    sys::keep_capabilities(wanted & sys::permitted_capabilities()?)?;
    prctl::set_no_new_privs()?;
    Ok(())
}
