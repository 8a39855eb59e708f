//! What verifier and compiler make of each program, compared with `ebpf/sizes.toml`.
//!
//! The file names the kernel that its figures come from, since another one counts otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use serde::{Deserialize, Serialize};

use super::Hook;
use super::kernel::Loaded;

/// The committed figures, or those of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Major and minor version of the kernel.
    pub kernel: String,
    /// Figures by program.
    pub programs: BTreeMap<String, Size>,
}

/// One program's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Instructions that the verifier walked through.
    pub verified: u32,
    /// Bytes of machine code.
    pub machine: u32,
}

/// Where the committed figures are.
pub fn file() -> PathBuf {
    crate::root().join("ebpf/sizes.toml")
}

/// The committed figures.
///
/// # Errors
/// No file, or none of ours.
pub fn committed() -> Result<Sizes> {
    let text = std::fs::read_to_string(file()).context("cannot read ebpf/sizes.toml")?;
    toml::from_str(&text).context("ebpf/sizes.toml is not as we wrote it")
}

/// Writes the committed figures.
///
/// # Errors
/// The file system's.
pub fn commit(sizes: &Sizes) -> Result<()> {
    let text = toml::to_string(sizes).context("sizes have a simple form")?;
    let header = "# Verified instructions and bytes of machine code of each program, by\n\
                  # `cargo run -p shoal-tests --bin programs sizes --write`. A rise of more than a\n\
                  # fifth fails until this file, and the commit that changes it, say why.\n";
    std::fs::write(file(), format!("{header}{text}")).context("cannot write ebpf/sizes.toml")
}

/// Loads the programs as the daemon does and asks the kernel.
///
/// # Errors
/// A program that does not load.
pub fn measure() -> Result<Sizes> {
    let mut loaded = Loaded::new(false, 1024)?;
    let xdp = size(&loaded.xdp()?.info()?);
    let mut programs = BTreeMap::from([(shoal_datapath::abi::programs::INGRESS_XDP.into(), xdp)]);
    for hook in [Hook::IngressTc, Hook::MeshTc, Hook::TaskTc] {
        let info = loaded.tc(hook)?.info()?;
        let name = info.name_as_str().context("a program has a name")?.to_owned();
        programs.insert(name, size(&info));
    }
    Ok(Sizes { kernel: kernel_version()?, programs })
}

/// What grew by more than a fifth, one sentence each.
pub fn growth(old: &Sizes, new: &Sizes) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, new) in &new.programs {
        let Some(old) = old.programs.get(name) else {
            complaints.push(format!("{name} is not in ebpf/sizes.toml"));
            continue;
        };
        for (what, old, new) in [
            ("verified instructions", old.verified, new.verified),
            ("bytes of machine code", old.machine, new.machine),
        ] {
            if u64::from(new) * 5 > u64::from(old) * 6 {
                complaints.push(format!("{name}: {new} {what}, {old} before"));
            }
        }
    }
    complaints
}

fn size(info: &ProgramInfo) -> Size {
    Size { verified: info.verified_instruction_count().unwrap_or(0), machine: info.size_jitted() }
}

fn kernel_version() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.split('.').take(2).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(verified: u32, machine: u32) -> Sizes {
        let programs = BTreeMap::from([("p".to_owned(), Size { verified, machine })]);
        Sizes { kernel: "6.18".to_owned(), programs }
    }

    #[test]
    fn a_rise_of_a_fifth_is_allowed_and_one_more_is_not() {
        assert!(growth(&sizes(100, 100), &sizes(120, 120)).is_empty());
        assert_eq!(growth(&sizes(100, 100), &sizes(121, 120)).len(), 1);
        assert_eq!(growth(&sizes(100, 100), &sizes(121, 121)).len(), 2);
    }

    #[test]
    fn a_program_that_the_file_does_not_know_is_told() {
        let old = Sizes { kernel: "6.18".to_owned(), programs: BTreeMap::new() };
        assert_eq!(growth(&old, &sizes(1, 1)), ["p is not in ebpf/sizes.toml"]);
    }
}
