//! Fuzzing: `cargo xtask fuzz` gives the targets of `tests/fuzz` to cargo-fuzz.
//!
//! It needs a nightly compiler and cargo-fuzz, which it installs; where that cannot be done it says
//! so. What a run finds is written to `tests/fuzz/regressions/TARGET/`, where an ordinary test
//! replays it from then on; what it learnt stays in `target/fuzz/corpus`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::setup;
use crate::shell::{cargo, free, root, run};
use crate::table::Table;

/// The targets, as `tests/fuzz/src/lib.rs` has them.
const TARGETS: [&str; 5] = ["token", "certificate", "stream", "backup", "frame"];

/// One input may take this long: a reader that is slow on some input can be held up by it.
const INPUT_SECONDS: u32 = 10;

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Only this target.
    target: Option<String>,
}

/// Fuzzes one target after the other; every one runs even if one before it found something.
pub fn run_all(args: &Args) -> Result<ExitCode> {
    if let Some(wanted) = &args.target
        && !TARGETS.contains(&wanted.as_str())
    {
        bail!("no target {wanted:?}; there are {}", TARGETS.join(", "));
    }
    if let Some(why) = why_not() {
        println!("fuzz: SKIPPED: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    let corpus = root().join("target/fuzz/corpus");
    run(cargo().args(["run", "--quiet", "-p", "shoal-fuzz", "--bin", "seeds", "--"]).arg(&corpus))?;
    // The versions that the product is built with.
    let lock = root().join("tests/fuzz/fuzz/Cargo.lock");
    std::fs::copy(root().join("Cargo.lock"), lock).context("cannot copy Cargo.lock")?;
    let mut table = Table::new(&["TARGET", "TIME", "RESULT"]);
    let mut found = false;
    for target in TARGETS {
        if args.target.as_ref().is_some_and(|wanted| wanted != target) {
            continue;
        }
        let started = Instant::now();
        let passed = fuzz(target, args.seconds, &corpus.join(target))?;
        found |= !passed;
        let result = if passed { "nothing found" } else { "FOUND something" };
        let time = format!("{:.0} s", started.elapsed().as_secs_f32());
        table.row(vec![target.to_owned(), time, result.to_owned()]);
    }
    println!("{}", table.render());
    Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is missing here.
fn why_not() -> Option<String> {
    let nightly = free("cargo").args(["+nightly", "--version"]).output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        return Some("no nightly compiler".to_owned());
    }
    setup::for_fuzz().err().map(|error| format!("no cargo-fuzz: {error:#}"))
}

/// One target. Whether it found nothing.
fn fuzz(target: &str, seconds: u32, corpus: &Path) -> Result<bool> {
    let found = root().join("tests/fuzz/regressions").join(target);
    std::fs::create_dir_all(&found).context("cannot make a folder")?;
    let mut fuzz = free("cargo");
    fuzz.current_dir(root());
    fuzz.args(["+nightly", "fuzz", "run", "--fuzz-dir", "tests/fuzz/fuzz"]);
    fuzz.arg("--target-dir").arg(root().join("target/fuzz"));
    fuzz.arg(target).arg(corpus).arg(&found).arg("--");
    fuzz.arg(format!("-max_total_time={seconds}"));
    fuzz.arg(format!("-timeout={INPUT_SECONDS}"));
    fuzz.arg(format!("-artifact_prefix={}/", found.display()));
    // A few lines at the end, instead of one for each input that taught something.
    fuzz.args(["-print_final_stats=1", "-verbosity=0", "-max_len=8192"]);
    let passed = fuzz.status().context("cannot run cargo fuzz")?.success();
    // An empty folder is of no use to anyone.
    let _ = std::fs::remove_dir(&found);
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_program() {
        for target in TARGETS {
            let program = root().join(format!("tests/fuzz/fuzz/fuzz_targets/{target}.rs"));
            let text = std::fs::read_to_string(program).unwrap();
            assert!(text.contains(&format!("run(\"{target}\"")));
        }
        let library = std::fs::read_to_string(root().join("tests/fuzz/src/lib.rs")).unwrap();
        assert_eq!(library.matches("Target { name: ").count(), TARGETS.len());
    }
}
