//! What reads bytes of strangers, run on any bytes.
//!
//! Each target is a function that panics when something is wrong: a panic of the code under test, or
//! a promise that does not hold. `cargo xtask fuzz` gives the targets to cargo-fuzz, whose programs
//! are in `fuzz/`; `tests/replay.rs` runs them on what was found before (`regressions/TARGET/`), and
//! on changed seeds, without any of it.

#![allow(clippy::unwrap_used, reason = "a panic is how a target tells")]

mod backup;
mod certificate;
mod frame;
mod stream;
mod token;

/// Something to run on any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of its program and of its folders.
    pub name: &'static str,
    /// Panics when something is wrong.
    pub run: fn(&[u8]),
    /// Good inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 5] = [
    Target { name: "token", run: token::run, seeds: token::seeds },
    Target { name: "certificate", run: certificate::run, seeds: certificate::seeds },
    Target { name: "stream", run: stream::run, seeds: stream::seeds },
    Target { name: "backup", run: backup::run, seeds: backup::seeds },
    Target { name: "frame", run: frame::run, seeds: frame::seeds },
];

/// Runs the target of that name.
///
/// # Panics
/// When there is none, or when it finds something.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of that name").run)(input);
}

/// Splits off a first byte, which chooses what the rest is taken for.
fn choice(input: &[u8]) -> (u8, &[u8]) {
    input.split_first().map_or((0, input), |(first, rest)| (*first, rest))
}
