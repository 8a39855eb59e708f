//! A manager and a kernel that the tests hold in their hands, and one node between them.
//!
//! The manager speaks the real protocol over a real connection; the kernel keeps what it is given
//! in collections. Shims, namespaces and tasks are real.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod lower;
pub mod manager;
pub mod node;
pub mod pki;
pub mod wire;

use std::time::{Duration, Instant};

/// Polls until `condition` gives something; panics with `what` after ten seconds.
pub async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether real tasks can run; says so on standard error when they cannot.
pub fn root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED: namespaces need root");
    }
    root
}
