//! Makes the lab's veth links behave as a wire does.
//!
//! Three things differ between a veth pair and a cable, and each of them hides or invents faults:
//!
//! 1. A sender leaves checksums to hardware that a veth does not have, so XDP would see and
//!    forward packets whose checksum is only half there. Transmit offload is therefore off at the
//!    switch's ports and at the client: what arrives at a host is complete.
//! 2. GRO at a port would glue packets together before the host sees them: off as well.
//! 3. What XDP transmits on a veth is delivered only if the *peer* has an XDP program too, which
//!    every switch port toward a node therefore gets: two instructions that pass everything.
#![allow(unsafe_code, reason = "loads two instructions by bpf(2); no crate is worth that")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{checked, net::ip_batch};

/// Commands of bpf(2), from `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// The program takes packets in several buffers, so the link keeps segmentation offload.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// The head of `union bpf_attr` as `BPF_PROG_LOAD` reads it.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of `union bpf_attr` as `BPF_OBJ_PIN` reads it.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Attaches a program that passes everything to the named ports, in the calling thread's
/// namespace. It is attached by netlink and so lives as long as the port, not as this process.
pub(super) fn ports(bpffs: &Path, ports: &[String]) -> Result<()> {
    let pin = bpffs.join("pass");
    pin_program(&load_pass()?, &pin)?;
    let lines: String = ports
        .iter()
        .map(|port| format!("link set dev {port} xdp pinned {}\n", pin.display()))
        .collect();
    ip_batch(&lines).context("cannot attach an XDP program to the switch's ports")
}

/// Turns transmit checksums (and with them segmentation) and GRO off.
pub(super) fn offloads_off(interfaces: &[String]) -> Result<()> {
    for interface in interfaces {
        offloads(interface, &[("tx", false), ("gro", false)])?;
    }
    Ok(())
}

/// Sets offloads of an interface by `ethtool`'s names, in the calling thread's namespace.
///
/// # Errors
/// `ethtool` is missing or refuses.
pub fn offloads(interface: &str, settings: &[(&str, bool)]) -> Result<()> {
    let mut command = Command::new("ethtool");
    command.args(["-K", interface]);
    for (name, on) in settings {
        command.args([*name, if *on { "on" } else { "off" }]);
    }
    let output = command.output().context("cannot run ethtool: `cargo xtask setup` installs it")?;
    checked(&format!("ethtool -K {interface}"), &output)?;
    Ok(())
}

/// `r0 = XDP_PASS; exit`.
fn load_pass() -> Result<OwnedFd> {
    let insns: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let license = c"Dual MIT/GPL";
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: insns.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        ..ProgLoad::default()
    };
    // SAFETY: `attr` is a prefix of `union bpf_attr` of the given size; the instructions and the
    // licence it points to outlive the call, which only reads them.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<ProgLoad>())
    };
    ensure!(fd >= 0, "cannot load an XDP program: {}", std::io::Error::last_os_error());
    let fd = i32::try_from(fd).context("a descriptor is an int")?;
    // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin_program(program: &OwnedFd, path: &Path) -> Result<()> {
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjPin {
        pathname: name.as_ptr().addr() as u64,
        bpf_fd: u32::try_from(program.as_raw_fd()).context("a descriptor is not negative")?,
        file_flags: 0,
    };
    // SAFETY: `attr` is a prefix of `union bpf_attr` of the given size; the path is terminated and
    // outlives the call.
    let rc =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attr, size_of::<ObjPin>()) };
    ensure!(rc == 0, "cannot pin to {}: {}", path.display(), std::io::Error::last_os_error());
    Ok(())
}
