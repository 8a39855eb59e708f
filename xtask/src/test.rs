//! Runs every kind of test that this machine can run, and says what was skipped and why.
//!
//! A skipped kind is printed and never counts as passed.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::shell::{cargo, is_root, root};
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
    letters: &'static str,
    what: &'static str,
    /// A nextest filter; `None` if no test of this kind exists yet.
    tests: Option<&'static str>,
    needs_root: bool,
}

/// The letters are those of ARCHITECTURE.md; a test belongs to the first kind that has it.
const KINDS: [Kind; 6] = [
    Kind {
        letters: "abde",
        what: "unit tests, datapath cases on the host, properties, clusters under a seed",
        tests: Some(
            "not (binary(=datapath_kernel) | binary(/^e2e_/) | binary(=daemon) | binary(=native) \
             | package(shoal-dataplane) & kind(test))",
        ),
        needs_root: false,
    },
    Kind {
        letters: "c",
        what: "the datapath cases in the kernel, byte for byte",
        tests: Some("binary(=datapath_kernel)"),
        needs_root: true,
    },
    Kind {
        letters: "n",
        what: "agent, data plane and daemon against the kernel",
        tests: Some("binary(=daemon) | binary(=native) | package(shoal-dataplane) & kind(test)"),
        needs_root: true,
    },
    Kind {
        letters: "f",
        what: "end to end on hosts in namespaces",
        tests: Some("binary(/^e2e_/)"),
        needs_root: true,
    },
    Kind { letters: "g", what: "Docker Engine", tests: None, needs_root: true },
    Kind { letters: "h", what: "other kernels in QEMU", tests: None, needs_root: false },
];

/// What nextest writes about each test, by its configuration in `.config/nextest.toml`.
const JUNIT: &str = "target/nextest/default/junit.xml";

/// Runs the kinds in their order; every kind runs even if one before it fails.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::for_test()?;
    let shoal = build::shoal(false)?;
    let mut table = Table::new(&["KIND", "WHAT", "RESULT"]);
    let mut failed = false;
    for kind in &KINDS {
        let wanted = kind.letters.chars().any(|letter| args.kinds.contains(&letter));
        if !args.kinds.is_empty() && !wanted {
            continue;
        }
        let result = match why_skipped(kind) {
            Some(why) => format!("SKIPPED: {why}"),
            None => {
                eprintln!("== ({}) {}", kind.letters, kind.what);
                let passed = nextest(kind, args.filter.as_deref(), &shoal)?;
                failed |= !passed;
                let report = std::fs::read_to_string(root().join(JUNIT)).unwrap_or_default();
                format!("{}{}", if passed { "passed" } else { "FAILED" }, counts(&report))
            }
        };
        table.row(vec![kind.letters.to_owned(), kind.what.to_owned(), result]);
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

/// How many tests ran, and how many of them only said why they cannot run here.
fn counts(report: &str) -> String {
    let tests = report.matches("<testcase ").count();
    let mut reasons: Vec<&str> = Vec::new();
    let mut skipped = 0;
    for test in report.split("<testcase ").skip(1) {
        if let Some((_, reason)) = test.split_once("SKIPPED: ") {
            skipped += 1;
            let reason = reason.lines().next().unwrap_or_default();
            let reason = reason.split('<').next().unwrap_or_default();
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
    match skipped {
        0 => format!(": {tests} tests"),
        _ => format!(": {} tests; {skipped} SKIPPED: {}", tests - skipped, reasons.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_kind_without_tests_is_skipped_with_its_reason() {
        let docker = KINDS.iter().find(|kind| kind.letters == "g").unwrap();
        assert_eq!(why_skipped(docker), Some("no test of this kind exists yet"));
    }

    #[test]
    fn every_letter_stands_for_one_kind() {
        let letters: Vec<char> = KINDS.iter().flat_map(|kind| kind.letters.chars()).collect();
        let distinct: BTreeSet<char> = letters.iter().copied().collect();
        assert_eq!(letters.len(), distinct.len());
    }

    #[test]
    fn a_test_that_skips_itself_is_not_counted_as_passed() {
        let report = "<testcase name=\"a\"><system-err>SKIPPED: needs root</system-err></testcase>\n\
                      <testcase name=\"b\"></testcase>";
        assert_eq!(counts(report), ": 1 tests; 1 SKIPPED: needs root");
        assert_eq!(counts("<testcase name=\"b\"/>"), ": 1 tests");
    }
}
