//! One measurement each: `wrk` for requests, `iperf3` for bulk, an own loop for latency.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use shoal_tests::lab::{CLIENT, Lab, checked, http};

use super::ways::Target;

/// What is measured on each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Requests a second, each on a new connection.
    NewConnections,
    /// Requests a second on connections that stay.
    KeepAlive,
    /// Megabits a second from the client to the task.
    BulkUp,
    /// Megabits a second from the task to the client.
    BulkDown,
    /// Microseconds until a connection stands, the median.
    ConnectP50,
    /// The same, of which one in a hundred takes longer.
    ConnectP99,
    /// Microseconds from the first packet to the answer of the task, the median.
    AnswerP50,
    /// The same, of which one in a hundred takes longer.
    AnswerP99,
}

impl Metric {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::NewConnections,
        Self::KeepAlive,
        Self::BulkUp,
        Self::BulkDown,
        Self::ConnectP50,
        Self::ConnectP99,
        Self::AnswerP50,
        Self::AnswerP99,
    ];

    /// Whether it is a time.
    pub fn less_is_better(self) -> bool {
        matches!(self, Self::ConnectP50 | Self::ConnectP99 | Self::AnswerP50 | Self::AnswerP99)
    }

    /// Its name with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::NewConnections => "new connections/s",
            Self::KeepAlive => "keep-alive requests/s",
            Self::BulkUp => "bulk up, Mbit/s",
            Self::BulkDown => "bulk down, Mbit/s",
            Self::ConnectP50 => "connect p50, us",
            Self::ConnectP99 => "connect p99, us",
            Self::AnswerP50 => "connect to answer p50, us",
            Self::AnswerP99 => "connect to answer p99, us",
        }
    }
}

/// How hard and how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Of one measurement.
    pub seconds: u32,
    /// That `wrk` keeps busy.
    pub connections: u32,
}

/// Connections of one latency measurement: enough for a 99th percentile.
const SAMPLES: usize = 1_000;

/// The wanted figures of one way in one round.
pub fn measure(
    lab: &Lab,
    target: Target,
    load: &Load,
    wanted: &[Metric],
) -> Result<Vec<(Metric, f64)>> {
    // Four figures come from one series of connections.
    let mut series: Option<Latency> = None;
    let mut figures = Vec::new();
    for metric in wanted {
        let value = match metric {
            Metric::NewConnections => wrk(lab, target.web, load, true)?,
            Metric::KeepAlive => wrk(lab, target.web, load, false)?,
            Metric::BulkUp => iperf(lab, target.bulk, load, false)?,
            Metric::BulkDown => iperf(lab, target.bulk, load, true)?,
            Metric::ConnectP50 | Metric::ConnectP99 | Metric::AnswerP50 | Metric::AnswerP99 => {
                let times = match series.take() {
                    Some(times) => times,
                    None => latency(lab, target.web, SAMPLES)?,
                };
                let value = match metric {
                    Metric::ConnectP50 => percentile(&times.connect, 50),
                    Metric::ConnectP99 => percentile(&times.connect, 99),
                    Metric::AnswerP50 => percentile(&times.answer, 50),
                    _ => percentile(&times.answer, 99),
                };
                series = Some(times);
                value
            }
        };
        figures.push((*metric, value));
    }
    Ok(figures)
}

/// Times of connections made one after the other, the shortest first.
#[derive(Debug, Default)]
pub struct Latency {
    connect: Vec<Duration>,
    answer: Vec<Duration>,
}

/// Opens `samples` connections in turn and asks once on each.
pub fn latency(lab: &Lab, target: SocketAddr, samples: usize) -> Result<Latency> {
    let timeout = Duration::from_secs(2);
    lab.inside(CLIENT, || {
        let mut latency = Latency::default();
        for _ in 0..samples {
            let started = Instant::now();
            let mut stream = TcpStream::connect_timeout(&target, timeout)?;
            latency.connect.push(started.elapsed());
            http::get_on(&mut stream, "/", timeout, false)?;
            latency.answer.push(started.elapsed());
        }
        latency.connect.sort_unstable();
        latency.answer.sort_unstable();
        Ok(latency)
    })?
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |duration| duration.as_secs_f64() * 1e6)
}

fn wrk(lab: &Lab, target: SocketAddr, load: &Load, close: bool) -> Result<f64> {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "2", "--connections", &load.connections.to_string()]);
    wrk.args(["--duration", &format!("{}s", load.seconds), "--timeout", "2s"]);
    if close {
        wrk.args(["--header", "Connection: close"]);
    }
    wrk.arg(format!("http://{target}/"));
    parse_wrk(&checked("wrk", &lab.output(CLIENT, &mut wrk)?)?)
}

/// Requests a second, if hardly one failed.
fn parse_wrk(text: &str) -> Result<f64> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label));
    let rate: f64 = after("Requests/sec:")
        .and_then(|rest| rest.trim().parse().ok())
        .with_context(|| format!("wrk printed no rate: {text}"))?;
    ensure!(rate > 0.0, "wrk got no answer: {text}");
    if let Some(errors) = after("Non-2xx or 3xx responses:") {
        bail!("wrk got answers that are errors:{errors}");
    }
    // A closed connection may be counted as a read error although its answer was complete.
    if let Some(errors) = after("Socket errors:") {
        let failed = errors
            .split(',')
            .filter(|part| part.contains("connect") || part.contains("timeout"))
            .filter_map(|part| part.split_whitespace().last()?.parse::<u64>().ok())
            .sum::<u64>();
        ensure!(failed == 0, "wrk could not connect or waited in vain:{errors}");
    }
    Ok(rate)
}

fn iperf(lab: &Lab, target: SocketAddr, load: &Load, down: bool) -> Result<f64> {
    let mut iperf = Command::new("iperf3");
    iperf.args(["--json", "--client", &target.ip().to_string()]);
    iperf.args(["--port", &target.port().to_string(), "--time", &load.seconds.to_string()]);
    if down {
        iperf.arg("--reverse");
    }
    let output = lab.output(CLIENT, &mut iperf)?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_iperf(&text)
}

/// Megabits a second as the receiver counted them.
fn parse_iperf(text: &str) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(text).context("iperf3 printed no JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.context("iperf3 printed no rate")? / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_wrk_is_found() {
        let text = "Running 2s test\n  12 requests in 2s\nRequests/sec:   6543.21\n";
        assert_eq!(parse_wrk(text).unwrap(), 6543.21);
        let errors = "  Socket errors: connect 0, read 12, write 0, timeout 0\n";
        assert!(parse_wrk(&format!("{errors}{text}")).is_ok());
    }

    #[test]
    fn a_rate_with_failures_is_none() {
        let text = "Requests/sec:   6543.21\n";
        let errors = "  Socket errors: connect 0, read 0, write 0, timeout 3\n";
        assert!(parse_wrk(&format!("{errors}{text}")).is_err());
        assert!(parse_wrk(&format!("  Non-2xx or 3xx responses: 4\n{text}")).is_err());
        assert!(parse_wrk("Requests/sec: 0.00\n").is_err());
        assert!(parse_wrk("").is_err());
    }

    #[test]
    fn the_rate_of_iperf_is_the_receivers() {
        let text = r#"{"end":{"sum_received":{"bits_per_second":2e9}}}"#;
        assert_eq!(parse_iperf(text).unwrap(), 2000.0);
        assert!(parse_iperf(r#"{"error":"unable to connect"}"#).is_err());
    }

    #[test]
    fn percentiles_are_taken_from_the_sorted_times() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        assert!((percentile(&times, 50) - 51.0).abs() < 1e-6);
        assert!((percentile(&times, 99) - 100.0).abs() < 1e-6);
        assert!(percentile(&[], 99).abs() < 1e-6);
    }
}
