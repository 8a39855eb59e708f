//! Puts the eBPF object into the library.
//!
//! The object is built by another compiler (`cargo xtask build-ebpf`); this script only looks for
//! it, since a build script that builds it would run that compiler under every editor.

use std::path::Path;
use std::{env, fs};

fn main() {
    let here = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let object = Path::new(&here).join("../../target/ebpf/shoal.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    if let Err(error) = fs::copy(&object, Path::new(&out).join("shoal.o")) {
        println!("cargo::error=no target/ebpf/shoal.o ({error}): run `cargo xtask build-ebpf`");
    }
}
