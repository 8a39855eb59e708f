//! Runs the cluster under many seeds and says which of them broke a promise, and how to repeat it.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use shoal_tests::sim::{self, Report, Rules, Seen};

const USAGE: &str = "usage: sim [--seeds N] [--seed S] [--jobs J]";

struct Args {
    first: u64,
    seeds: u64,
    jobs: u64,
    /// One seed alone, and all that happens.
    aloud: bool,
}

fn args() -> Option<Args> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let mut args = Args { first: 0, seeds: 0, jobs: cores, aloud: false };
    let (mut seed, mut seeds) = (None, None);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value: u64 = given.next()?.parse().ok()?;
        match name.as_str() {
            "--seeds" => seeds = Some(value),
            "--seed" => seed = Some(value),
            "--jobs" if value > 0 => args.jobs = value,
            _ => return None,
        }
    }
    args.first = seed.unwrap_or(0);
    args.seeds = seeds.unwrap_or_else(|| if seed.is_some() { 1 } else { 1_000 });
    args.aloud = seed.is_some() && args.seeds == 1;
    Some(args)
}

fn main() -> ExitCode {
    let Some(Args { first, seeds, jobs, aloud }) = args() else {
        eprintln!("{USAGE}");
        return ExitCode::from(125);
    };
    let started = Instant::now();
    let next = AtomicU64::new(first);
    let failed: Mutex<Vec<Report>> = Mutex::default();
    let seen: Mutex<Seen> = Mutex::default();
    let (next, failed, seen) = (&next, &failed, &seen);
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(seeds) {
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.saturating_add(seeds) {
                        return;
                    }
                    let report = sim::run(seed, Rules::default(), aloud);
                    let mut all = seen.lock().expect("no thread panics with it");
                    *all = std::mem::take(&mut *all).and(&report.seen);
                    drop(all);
                    if !report.broken.is_empty() {
                        println!("seed {seed}: {}", report.broken.join("\n  "));
                        println!("  again: cargo xtask sim --seed {seed}");
                        failed.lock().expect("no thread panics with it").push(report);
                    } else if aloud {
                        println!("seed {seed} keeps all promises, hash {:016x}", report.hash);
                    }
                }
            });
        }
    });
    let failed = failed.lock().expect("no thread panics with it").len();
    let seen = seen.lock().expect("no thread panics with it");
    println!("{}", summary(&seen));
    println!("{seeds} seeds, {failed} failed, {:.1} s", started.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn summary(seen: &Seen) -> String {
    format!(
        "{} leaders; {} power failures, {} with unsynced writes lost and {} torn, {} blackouts; {} \
         cuts, {} one way; {} messages lost, {} doubled; {} slow disks; {} clocks set; {} steps of \
         the membership, {} of nodes; {} entries, {} snapshots sent; clients: {} stored, {} refused, {} unknown, {} \
         not taken, {} read",
        seen.leaders.len(),
        seen.crashes,
        seen.lost_writes,
        seen.torn_writes,
        seen.blackouts,
        seen.partitions,
        seen.one_way,
        seen.dropped,
        seen.doubled,
        seen.slow_disks,
        seen.jumps,
        seen.member_changes,
        seen.node_changes,
        seen.committed,
        seen.snapshots,
        seen.stored,
        seen.refused,
        seen.unknown,
        seen.not_taken,
        seen.read,
    )
}
