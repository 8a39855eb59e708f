//! Tells about the programs for the kernel on this machine: their sizes, and what a packet costs.
//!
//! A binary of its own, so that `xtask` stays quick to compile: it calls this one.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use shoal_tests::testbed::{kernel, nspp, sizes};

const USAGE: &str = "usage: programs sizes [--write]
       programs nspp [--format table|json] [--rounds N] [--packets N]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<ExitCode> {
    if let Some(why) = kernel::why_not() {
        bail!(why);
    }
    match args {
        ["sizes"] => tell_sizes(),
        ["sizes", "--write"] => {
            sizes::commit(&sizes::measure()?)?;
            tell_sizes()
        }
        ["nspp", options @ ..] => nanoseconds(options),
        _ => bail!(USAGE),
    }
}

fn tell_sizes() -> Result<ExitCode> {
    let here = sizes::measure()?;
    println!("{:<14} {:>9} {:>9}", "PROGRAM", "VERIFIED", "BYTES");
    for (name, size) in &here.programs {
        println!("{name:<14} {:>9} {:>9}", size.verified, size.machine);
    }
    let committed = sizes::committed()?;
    if committed.kernel != here.kernel {
        println!("not compared: ebpf/sizes.toml is of Linux {}", committed.kernel);
        return Ok(ExitCode::SUCCESS);
    }
    let complaints = sizes::growth(&committed, &here);
    for complaint in &complaints {
        eprintln!("error: {complaint}");
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn nanoseconds(options: &[&str]) -> Result<ExitCode> {
    let mut effort = nspp::Effort::default();
    let mut json = false;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().with_context(|| format!("{option} wants a value"));
        match *option {
            "--format" => json = *value()? == "json",
            "--rounds" => effort.rounds = value()?.parse().context("--rounds wants a number")?,
            "--packets" => effort.packets = value()?.parse().context("--packets wants a number")?,
            _ => bail!(USAGE),
        }
    }
    let figures = nspp::measure(effort)?;
    if json {
        for figure in figures {
            let nspp::Figure { name, flows, min_ns, median_ns, .. } = figure;
            println!(
                "{}",
                serde_json::json!({
                    "name": name, "flows": flows, "min_ns": min_ns, "median_ns": median_ns,
                })
            );
        }
    } else {
        println!("{:<36} {:>6} {:>8} {:>8}", "ns/packet above empty", "FLOWS", "MIN", "MEDIAN");
        figures.iter().for_each(|figure| println!("{figure}"));
    }
    Ok(ExitCode::SUCCESS)
}
