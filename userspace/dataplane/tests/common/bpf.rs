//! What someone else may do to our links, which no crate wraps.

#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper for this")]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// Detaches a pinned link's program; the pin stays.
pub fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link = bpf(OBJ_GET, [path.as_ptr() as u64, 0])?;
    let detached = bpf(LINK_DETACH, [link.cast_unsigned(), 0]);
    // SAFETY: the descriptor was just made and nobody else has it.
    unsafe { libc::close(i32::try_from(link).map_err(io::Error::other)?) };
    detached.map(drop)
}

fn bpf(command: libc::c_long, attr: [u64; 2]) -> io::Result<i64> {
    // SAFETY: both commands read 16 bytes at most of `attr`; a path in it outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of_val(&attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
