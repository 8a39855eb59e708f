//! The few system calls that no crate wraps: reading maps in batches, deleting from an array of
//! maps, detaching a pinned link, an interface's driver and offloads, and work in another network
//! namespace.

#![allow(unsafe_code, reason = "bpf(2), ioctl(2) and setns(2) have no safe wrapper for this")]

use std::ffi::{CString, c_char, c_ulong};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use nix::sched::{CloneFlags, setns};

/// Commands of bpf(2), `enum bpf_cmd` in the kernel's `uapi/linux/bpf.h`.
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_GET: libc::c_long = 7;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const LINK_DETACH: libc::c_long = 34;

/// `bpf_attr` for deleting one element.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `bpf_attr` for opening a pinned object.
#[repr(C)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `bpf_attr` for detaching a link.
#[repr(C)]
struct LinkAttr {
    link_fd: u32,
}

/// `bpf_attr` for batches.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Deletes the inner map at `index` of an array of maps. That it was free already is no error.
pub(crate) fn delete_inner_map(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: (&raw const index) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: `attr` has the layout of the command's part of `bpf_attr`, its size is passed, and
    // the key that it points to outlives the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, MAP_DELETE_ELEM, &raw const attr, size_of::<ElementAttr>())
    };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        },
    }
}

/// Detaches a pinned link's program now. Removing the pin alone would do it some time later, and
/// the interface would refuse the next program until then.
pub(crate) fn detach_pinned(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = PathAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` has the layout of the command's part of `bpf_attr`, its size is passed, and
    // the path outlives the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const attr, size_of::<PathAttr>()) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let attr = LinkAttr { link_fd: fd.as_raw_fd().cast_unsigned() };
    // SAFETY: as above; the command takes no pointer.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const attr, size_of::<LinkAttr>())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads all `count` values of an array map with few calls: one by one, 131072 frontends would
/// cost a restart a tenth of a second.
pub(crate) fn read_array<T: Pod + Default>(map: BorrowedFd<'_>, count: u32) -> io::Result<Vec<T>> {
    let mut keys = vec![0_u32; count as usize];
    let mut values = vec![T::default(); count as usize];
    let mut position = 0_u32;
    let mut done = 0_u32;
    while done < count {
        let mut attr = BatchAttr {
            in_batch: if done == 0 { 0 } else { (&raw const position) as u64 },
            out_batch: (&raw mut position) as u64,
            keys: (&raw mut keys[done as usize]) as u64,
            values: (&raw mut values[done as usize]) as u64,
            count: count - done,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `attr` has the layout of the command's part of `bpf_attr`. The kernel writes at
        // most `count` keys and values, which the buffers have room for from `done` on, and one
        // key to `position`; all outlive the call. Any bytes are a valid `T`, since it is `Pod`.
        // The caller's map has 4-byte keys and values of the size of `T`: aya has checked that.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>())
        };
        done += attr.count;
        if result != 0 {
            let error = io::Error::last_os_error();
            // The kernel's word for "that was the last one".
            if error.raw_os_error() == Some(libc::ENOENT) {
                break;
            }
            return Err(error);
        }
    }
    values.truncate(done as usize);
    Ok(values)
}

/// Walks a hash map in batches, giving each batch's keys to `seen`. What is put or deleted during
/// the walk may be missed. Key by key, a full flow table would take a second; this takes some tens
/// of milliseconds.
pub(crate) fn walk_hash<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    mut seen: impl FnMut(&[K]),
) -> io::Result<()> {
    // More than a bucket ever holds.
    const AT_ONCE: u32 = 4_096;
    let mut keys = vec![K::default(); AT_ONCE as usize];
    let mut values = vec![V::default(); AT_ONCE as usize];
    let mut position = 0_u32;
    let mut begun = false;
    loop {
        let mut attr = BatchAttr {
            in_batch: if begun { (&raw const position) as u64 } else { 0 },
            out_batch: (&raw mut position) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: AT_ONCE,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `attr` has the layout of the command's part of `bpf_attr`. The kernel writes at
        // most `count` keys and values, which the buffers have room for, and 4 bytes to
        // `position`; all outlive the call. Any bytes are a valid `K` and `V`, since they are
        // `Pod`. The caller's map has keys and values of their sizes: aya has checked that.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>())
        };
        let failed = (result != 0).then(io::Error::last_os_error);
        // The kernel's word for "that was the last one".
        let ended = failed.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let Some(error) = failed.filter(|_| !ended) {
            return Err(error);
        }
        seen(&keys[..attr.count as usize]);
        if ended {
            return Ok(());
        }
        begun = true;
    }
}

/// Puts inner maps in place, all in one call: after each call on an array of maps the kernel waits
/// until no program can see the old ones, some 10 ms, and a dead node changes many rings.
pub(crate) fn put_inner_maps(
    map: BorrowedFd<'_>,
    inner: &[(u32, BorrowedFd<'_>)],
) -> io::Result<()> {
    let keys: Vec<u32> = inner.iter().map(|(key, _)| *key).collect();
    let values: Vec<u32> =
        inner.iter().map(|(_, inner)| inner.as_raw_fd().cast_unsigned()).collect();
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(inner.len()).map_err(io::Error::other)?,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attr` has the layout of the command's part of `bpf_attr`. The kernel reads `count`
    // keys of 4 bytes and as many descriptors; both buffers outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, MAP_UPDATE_BATCH, &raw mut attr, size_of::<BatchAttr>())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Name of an interface's driver, as `ethtool -i` shows it.
pub(crate) fn driver(interface: &str) -> io::Result<String> {
    const GET_DRIVER_INFO: u32 = 3;
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct DriverInfo {
        cmd: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let mut info = DriverInfo { cmd: GET_DRIVER_INFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: the command writes an `ethtool_drvinfo`, which this is.
    unsafe { ethtool(interface, &mut info) }?;
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// `ETH_FLAG_RXVLAN`, known to `ethtool -k` as `rx-vlan-offload`.
const RX_VLAN: u32 = 1 << 8;

fn ethtool_flags(interface: &str) -> io::Result<u32> {
    const GET_FLAGS: u32 = 0x25;
    let mut flags = EthtoolValue { cmd: GET_FLAGS, data: 0 };
    // SAFETY: the command writes an `ethtool_value`, which this is.
    unsafe { ethtool(interface, &mut flags) }?;
    Ok(flags.data)
}

/// Whether an interface takes VLAN tags out of the frames that it receives.
pub(crate) fn takes_vlan_tags_off(interface: &str) -> io::Result<bool> {
    Ok(ethtool_flags(interface)? & RX_VLAN != 0)
}

/// Has an interface do so, or not.
pub(crate) fn take_vlan_tags_off(interface: &str, on: bool) -> io::Result<()> {
    const SET_FLAGS: u32 = 0x26;
    let others = ethtool_flags(interface)? & !RX_VLAN;
    let mut flags = EthtoolValue { cmd: SET_FLAGS, data: others | if on { RX_VLAN } else { 0 } };
    // SAFETY: the command reads an `ethtool_value`, which this is.
    unsafe { ethtool(interface, &mut flags) }
}

/// Does one command of ethtool's old interface.
///
/// # Safety
/// `command` is the structure that its first field, the command's number, stands for.
unsafe fn ethtool<T>(interface: &str, command: &mut T) -> io::Result<()> {
    const SIOCETHTOOL: c_ulong = 0x8946;
    // SAFETY: `ifreq` is plain data and all zero is one of its values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, as the end of the name.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *command).cast();
    // SAFETY: no pointer is passed; the result is checked before it is owned.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the socket was just made and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the request names the command's structure, as the caller promises, and both outlive
    // the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs `work` on a thread of its own inside `netns`; this thread stays where it is.
///
/// A socket belongs to the namespace it was opened in, so one that `work` returns keeps serving it.
pub(crate) fn in_netns<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        inside.join().map_err(|_| io::Error::other("the thread in the namespace panicked"))?
    })
}
