//! Measures: whole requests through a lab, and single programs in the kernel.
//!
//! `bench mesh` sends the same load from one client over four ways to a task behind two hosts, in
//! interleaved rounds, and prints what each way reaches of plain routing. `bench programs` runs
//! each program on one packet many times. `bench raft` measures the managers' writes, and a backup
//! and restore. Absolute figures of a lab mean little: all hosts share the machine's cores. Ratios
//! of one run mean something.

mod measure;
mod raft;
mod report;
mod ways;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use shoal_tests::lab::Lab;

use crate::shell::{cargo, need_root, root, run as run_command};
use crate::{build, guard, setup};

use measure::Metric;
use report::Report;
use ways::{Way, Ways};

const PREFIX: &str = "bench";

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Requests through host 1 to a task on host 2: routed, Shoal, nftables, HAProxy.
    Mesh(Mesh),
    /// Nanoseconds per packet of each program for the kernel.
    Programs {
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Committed writes of one and three managers, and a backup and restore.
    Raft(raft::Args),
}

#[derive(clap::Args)]
struct Mesh {
    /// Rounds; each measures every way once.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Connections that `wrk` keeps busy.
    #[arg(long, default_value_t = 32)]
    connections: u32,
    /// Only these ways.
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Only these figures.
    #[arg(long, value_enum, value_delimiter = ',')]
    metrics: Vec<Metric>,
    /// Measure this `shoal` instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Leave out the programs' nanoseconds per packet.
    #[arg(long)]
    no_programs: bool,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// What the ends of the way do to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Segmentation and merging as the kernel does by default: few, big packets.
    On,
    /// Neither at the ends nor at the hosts: every packet crosses alone, as on a wire.
    WireLike,
}

/// Runs one benchmark.
pub fn run(args: Args) -> Result<ExitCode> {
    if !matches!(args.what, What::Raft(_)) {
        need_root("a benchmark")?;
        setup::for_bench()?;
    }
    match args.what {
        What::Programs { format } => programs(format)?,
        What::Raft(args) => return raft::run(&args),
        What::Mesh(mesh) => {
            let shoal = match &mesh.binary {
                Some(binary) => binary.canonicalize().context("no such binary")?,
                None => build::shoal(true)?,
            };
            return guard::guarded(PREFIX, || {
                let lab = Lab::owned(&root(), PREFIX, 4)?.with_binary(shoal);
                let measured = self::mesh(&lab, &mesh);
                if measured.is_err() {
                    eprintln!("{}\n{}", lab.log_tail("n1"), lab.log_tail("n2"));
                }
                let report = measured?;
                match mesh.format {
                    Format::Table => print!("{}", report.table()),
                    Format::Json => println!("{}", report.json()),
                }
                drop(lab);
                if !mesh.no_programs {
                    programs(mesh.format)?;
                }
                Ok(ExitCode::SUCCESS)
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn mesh(lab: &Lab, args: &Mesh) -> Result<Report> {
    let wanted = if args.ways.is_empty() { Way::ALL.to_vec() } else { args.ways.clone() };
    let metrics = if args.metrics.is_empty() { Metric::ALL.to_vec() } else { args.metrics.clone() };
    let mut ways = Ways::build(lab, wanted.contains(&Way::Shoal))?;
    let load = measure::Load { seconds: args.seconds, connections: args.connections };
    let mut report = Report::default();
    for offload in [Offload::On, Offload::WireLike] {
        ways.set_offload(offload)?;
        // One short request each, so that no way pays for neighbours and caches in round one.
        for way in &wanted {
            ways.enter(*way)?;
            measure::latency(lab, ways.target(*way)?.web, 50).with_context(|| way.failed())?;
            ways.leave(*way)?;
        }
        for round in 1..=args.rounds {
            eprintln!("bench: {offload:?}, round {round} of {}", args.rounds);
            for way in &wanted {
                ways.enter(*way)?;
                let target = ways.target(*way)?;
                for (metric, value) in
                    measure::measure(lab, target, &load, &metrics).with_context(|| way.failed())?
                {
                    report.add(offload, *way, metric, value);
                }
                ways.leave(*way)?;
            }
        }
    }
    lab.check_checksums()?;
    Ok(report)
}

/// The programs' cost needs the packet test bed, which is a program of its own.
fn programs(format: Format) -> Result<()> {
    build::ebpf()?;
    let mut nspp = cargo();
    nspp.args(["run", "--quiet", "--release", "--package", "shoal-tests", "--bin", "programs"]);
    nspp.args(["--", "nspp", "--format", if format == Format::Json { "json" } else { "table" }]);
    run_command(&mut nspp)
}
