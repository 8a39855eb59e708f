//! What tests, demo and benchmarks stand on: hosts in namespaces, and the packet test bed.
//!
//! The lab needs nothing but the kernel and the `shoal` binary; the packet test bed loads programs
//! and comes with the feature `testbed`; the cluster under a seed comes with `sim`. `xtask` leaves both
//! out to stay quick to compile.

pub mod cluster;
pub mod lab;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "testbed")]
pub mod testbed;

use std::path::{Path, PathBuf};

/// The workspace's root.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is in the workspace");
    root.canonicalize().unwrap_or_else(|_| root.to_owned())
}

/// A prefix that no other test of this machine uses: this process and a letter.
pub fn unique(letter: &str) -> String {
    format!("t{}{letter}", std::process::id())
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Ends a test that needs root, and says so, where there is none.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
    };
}
