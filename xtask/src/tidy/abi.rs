//! Keeps the hash of what kernel and user share beside its version.
//!
//! A daemon knows the maps of another release only by their version, so a change of the ABI
//! without a new version would let it write into maps of another shape. Comments and blank lines
//! do not count.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

const SOURCE: &str = "ebpf/datapath/src/abi.rs";
const LOCK: &str = "ebpf/datapath/abi.lock";

/// The version of an ABI and the hash of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abi {
    version: u32,
    hash: u64,
}

/// Problems of the ABI of the workspace at `root`.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let now = of_source(&read(root, SOURCE)?)?;
    let locked = fs::read_to_string(root.join(LOCK)).ok().and_then(|text| of_lock(&text));
    Ok(compare(locked, now).err().into_iter().collect())
}

/// Records the ABI of today, if its version says that it changed.
pub(super) fn bless(root: &Path) -> Result<()> {
    let now = of_source(&read(root, SOURCE)?)?;
    let locked = fs::read_to_string(root.join(LOCK)).ok().and_then(|text| of_lock(&text));
    if let Some(locked) = locked
        && locked.version == now.version
        && locked.hash != now.hash
    {
        bail!("{SOURCE} changed but ABI_VERSION is still {}: raise it first", now.version);
    }
    let text = format!("version {}\nhash {:016x}\n", now.version, now.hash);
    fs::write(root.join(LOCK), text).with_context(|| format!("cannot write {LOCK}"))
}

fn compare(locked: Option<Abi>, now: Abi) -> Result<(), String> {
    let bless = "then run `cargo xtask tidy --bless-abi`";
    match locked {
        None => Err(format!("{LOCK}: missing or unreadable: run `cargo xtask tidy --bless-abi`")),
        Some(locked) if locked == now => Ok(()),
        Some(locked) if locked.version == now.version => Err(format!(
            "{SOURCE}: changed since version {}: raise ABI_VERSION, {bless}",
            now.version
        )),
        Some(_) => Err(format!("{LOCK}: of another version: look at {SOURCE} once more, {bless}")),
    }
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

fn of_source(text: &str) -> Result<Abi> {
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("pub const ABI_VERSION: u32 = "))
        .and_then(|rest| rest.trim_end_matches(';').parse().ok())
        .with_context(|| format!("{SOURCE} has no ABI_VERSION"))?;
    // The version itself is left out, so that raising it alone changes nothing else.
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty() && !line.contains("ABI_VERSION"));
    let hash = lines
        .flat_map(|line| line.bytes().chain([b'\n']))
        .fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    Ok(Abi { version, hash })
}

/// Constants of the 64-bit FNV-1a hash, which is enough to notice an edit.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

fn of_lock(text: &str) -> Option<Abi> {
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let version = field("version")?.parse().ok()?;
    let hash = u64::from_str_radix(field("hash")?, 16).ok()?;
    Some(Abi { version, hash })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE_1: &str =
        "/// Doc.\npub const ABI_VERSION: u32 = 1;\npub struct A {\n    b: u8,\n}\n";

    #[test]
    fn an_edit_without_a_new_version_is_a_problem() {
        let old = of_source(SOURCE_1).unwrap();
        let new = of_source(&SOURCE_1.replace("u8", "u16")).unwrap();
        assert!(compare(Some(old), new).unwrap_err().contains("raise ABI_VERSION"));
        assert!(compare(None, new).is_err());
    }

    #[test]
    fn a_new_version_must_be_recorded() {
        let old = of_source(SOURCE_1).unwrap();
        let new = of_source(&SOURCE_1.replace("u8", "u16").replace("= 1", "= 2")).unwrap();
        assert_eq!(new.version, 2);
        assert!(compare(Some(old), new).unwrap_err().contains("--bless-abi"));
        assert_eq!(compare(Some(new), new), Ok(()));
    }

    #[test]
    fn comments_and_blank_lines_do_not_count() {
        let commented = SOURCE_1.replace("/// Doc.", "/// Other.\n\n// More.");
        assert_eq!(of_source(SOURCE_1).unwrap(), of_source(&commented).unwrap());
    }

    #[test]
    fn the_lock_reads_back() {
        let abi = of_source(SOURCE_1).unwrap();
        let text = format!("version {}\nhash {:016x}\n", abi.version, abi.hash);
        assert_eq!(of_lock(&text), Some(abi));
        assert_eq!(of_lock("garbage"), None);
    }
}
