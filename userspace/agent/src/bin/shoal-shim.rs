//! The shim alone: what `shoal shim --dir DIR` runs, without the rest of the daemon.
//!
//! This crate's tests start it as the daemon starts itself.

fn main() {
    // Called as `shoal-shim shim --dir DIR`, as the daemon calls `/proc/self/exe`.
    shoal_agent::shim::main(std::env::args_os().skip(2))
}
