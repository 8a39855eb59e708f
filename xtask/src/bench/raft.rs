//! Runs the managers' benchmark and prints its figures beside those of the library alone.
//!
//! The figures of the library are those of our notes on crates (openraft over redb, in one process,
//! no network, no encryption): what Shoal's managers add is TLS, gRPC, the control plane's step and
//! sealing at rest. Both were taken on machines whose disks are rate limited: after a burst each
//! flush costs milliseconds, so runs are short and there is a pause before each.

use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Format;
use crate::shell::cargo;
use crate::table::Table;

/// What is measured, and how long.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds per run.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Seconds before each run, for a rate limited disk to recover.
    #[arg(long, default_value_t = 5)]
    pause: u32,
    /// Tasks in the store that is backed up and restored; 0 leaves that out.
    #[arg(long, default_value_t = 100_000)]
    tasks: u32,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Managers, clients, and writes per second and p50 of the library alone.
const LIBRARY: [(u64, u64, &str, &str); 6] = [
    (1, 1, "650-2100", "0.21-0.61"),
    (1, 64, "20000-46000", "-"),
    (1, 512, "26000-59000", "-"),
    (3, 1, "500-1650", "0.54-1.0"),
    (3, 64, "12000-18000", "-"),
    (3, 512, "10000-38000", "-"),
];

/// Runs it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut bench = cargo();
    bench.args(["run", "--quiet", "--release", "--package", "shoal-manager"]);
    bench.args(["--example", "bench_raft", "--"]);
    for (name, value) in
        [("--seconds", args.seconds), ("--pause", args.pause), ("--tasks", args.tasks)]
    {
        bench.arg(name).arg(value.to_string());
    }
    let output = bench.stderr(Stdio::inherit()).output().context("cannot run the benchmark")?;
    ensure!(output.status.success(), "the benchmark failed: {}", output.status);
    let rows: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("the benchmark's figures cannot be read")?;
    match args.format {
        Format::Json => println!("{}", json!({ "raft": rows })),
        Format::Table => print!("{}", table(&rows)),
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Value]) -> String {
    let mut table = Table::new(&[
        "MANAGERS",
        "CLIENTS",
        "WRITES/S",
        "P50 MS",
        "P99 MS",
        "FAILED",
        "LIBRARY W/S",
        "P50 MS",
    ]);
    let mut text = String::new();
    let cell = |row: &Value, key: &str| row[key].to_string();
    for row in rows {
        if row["what"] == "writes" {
            let known = LIBRARY
                .iter()
                .find(|known| row["managers"] == known.0 && row["clients"] == known.1);
            let (per_second, p50) = known.map_or(("-", "-"), |known| (known.2, known.3));
            let keys = ["managers", "clients", "per_second", "p50_ms", "p99_ms", "failed"];
            let mut cells: Vec<String> = keys.iter().map(|key| cell(row, key)).collect();
            cells.extend([per_second.to_owned(), p50.to_owned()]);
            table.row(cells);
        } else {
            text += &format!(
                "\nA store with {} tasks: backup {} ms, {} bytes; restore {} ms, serving again after {} \
                 ms\n",
                row["tasks"], row["backup_ms"], row["bytes"], row["restore_ms"], row["serving_ms"],
            );
        }
    }
    format!(
        "\nCommitted writes, durable, over mutual TLS on loopback; beside them the library \
         alone\n\n{}{text}",
        table.render()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_those_of_the_library() {
        let rows = [
            json!({"what": "writes", "managers": 3, "clients": 64, "per_second": 9000,
                   "p50_ms": 6.5, "p99_ms": 20.1, "failed": 0}),
            json!({"what": "backup", "tasks": 100_000, "bytes": 7, "backup_ms": 5,
                   "restore_ms": 6, "serving_ms": 8}),
        ];
        let text = table(&rows);
        let row = text.lines().find(|line| line.starts_with('3')).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells, ["3", "64", "9000", "6.5", "20.1", "0", "12000-18000", "-"]);
        assert!(text.ends_with("backup 5 ms, 7 bytes; restore 6 ms, serving again after 8 ms\n"));
    }
}
