//! Runs every kind of test that this machine can run, and says what was skipped and why.
//!
//! A skipped kind is printed and never counts as passed.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::shell::{cargo, is_root};
use crate::table::Table;
use crate::{build, lab, setup};

/// Which tests.
#[derive(clap::Args)]
pub struct Args {
    /// Only these kinds, by letter.
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<char>,
    /// Only tests whose name has this in it.
    filter: Option<String>,
}

/// A kind of test and how nextest finds its tests.
struct Kind {
    letter: char,
    what: &'static str,
    /// A nextest filter; `None` if no test of this kind exists yet.
    tests: Option<&'static str>,
    needs_root: bool,
}

/// Everything that is not one of the slower kinds.
const FAST: &str = "not (binary(=datapath_kernel) | binary(/^e2e_/) | test(/::kernel::/))";
/// The datapath cases that run in the kernel.
const KERNEL: &str = "binary(=datapath_kernel) | test(/::kernel::/)";
/// Hosts in namespaces, real packets, real kills.
const LAB: &str = "binary(/^e2e_/)";

const KINDS: [Kind; 5] = [
    Kind {
        letter: 'a',
        what: "unit tests, datapath cases on the host, properties, clusters in process",
        tests: Some(FAST),
        needs_root: false,
    },
    Kind {
        letter: 'c',
        what: "the datapath cases in the kernel, byte for byte",
        tests: Some(KERNEL),
        needs_root: true,
    },
    Kind {
        letter: 'f',
        what: "end to end on hosts in namespaces",
        tests: Some(LAB),
        needs_root: true,
    },
    Kind { letter: 'g', what: "Docker Engine", tests: None, needs_root: true },
    Kind { letter: 'h', what: "other kernels in QEMU", tests: None, needs_root: false },
];

/// Runs the kinds in their order; every kind runs even if one before it fails.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::for_test()?;
    let shoal = build::shoal(false)?;
    let mut table = Table::new(&["KIND", "WHAT", "RESULT"]);
    let mut failed = false;
    for kind in &KINDS {
        if !args.kinds.is_empty() && !args.kinds.contains(&kind.letter) {
            continue;
        }
        let result = match why_skipped(kind) {
            Some(why) => format!("SKIPPED: {why}"),
            None => {
                eprintln!("== ({}) {}", kind.letter, kind.what);
                let passed = nextest(kind, args.filter.as_deref(), &shoal)?;
                failed |= !passed;
                if passed { "passed".to_owned() } else { "FAILED".to_owned() }
            }
        };
        table.row(vec![kind.letter.to_string(), kind.what.to_owned(), result]);
    }
    if is_root() {
        lab::down_orphans()?;
    }
    println!("{}", table.render());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn why_skipped(kind: &Kind) -> Option<&'static str> {
    if kind.tests.is_none() {
        Some("no test of this kind exists yet")
    } else if kind.needs_root && !is_root() {
        Some("needs root")
    } else {
        None
    }
}

fn nextest(kind: &Kind, filter: Option<&str>, shoal: &std::path::Path) -> Result<bool> {
    let tests = kind.tests.context("a kind that runs has tests")?;
    let mut nextest = cargo();
    nextest.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"]);
    nextest.args(["-E", tests]).args(filter);
    nextest.env("SHOAL_BINARY", shoal);
    Ok(nextest.status().context("cannot run cargo nextest")?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_without_tests_is_skipped_with_its_reason() {
        let docker = KINDS.iter().find(|kind| kind.letter == 'g').unwrap();
        assert_eq!(why_skipped(docker), Some("no test of this kind exists yet"));
    }

    #[test]
    fn every_kind_has_a_letter_of_its_own() {
        let mut letters: Vec<char> = KINDS.iter().map(|kind| kind.letter).collect();
        letters.dedup();
        assert_eq!(letters.len(), KINDS.len());
    }
}
