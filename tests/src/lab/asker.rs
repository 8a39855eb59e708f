//! Asks every host steadily in the background and remembers each answer and failure with its time.
//!
//! Several lanes per host ask in turn, so that one request that waits for its timeout does not
//! hide what happens meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::http::{self, Answer};
use super::{CLIENT, Lab};

/// A request that is not answered within this time has failed.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// Lanes per host: one is free again long before all the others wait for their timeout.
const LANES: u32 = 10;

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The host that was asked.
    pub host: String,
    /// When the request was begun.
    pub sent: Instant,
    /// How long it took to its answer or failure.
    pub took: Duration,
    /// The answer, or why there was none.
    pub outcome: Result<Answer, String>,
}

/// Requests that go on until [`Asker::stop`].
#[derive(Debug)]
pub struct Asker {
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<Result<Vec<Ask>>>>,
}

impl Asker {
    /// Asks `port` of each host from the client, one new connection per host every `every`.
    pub fn start(lab: &Lab, hosts: &[String], port: u16, every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut lanes = Vec::new();
        for host in hosts {
            let addr = SocketAddr::new(lab.addr(host).into(), port);
            for lane in 0..LANES {
                let (host, stop) = (host.clone(), Arc::clone(&stop));
                let netns = lab.netns(CLIENT);
                lanes.push(std::thread::spawn(move || {
                    let first = Instant::now() + every * lane;
                    super::net::inside(&netns, || ask_on(&host, addr, first, every * LANES, &stop))
                }));
            }
        }
        Self { stop, lanes }
    }

    /// Ends the requests and gives all of them, in the order in which they were begun.
    ///
    /// # Errors
    /// A lane could not run at all.
    pub fn stop(self) -> Result<Vec<Ask>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut asks = Vec::new();
        for lane in self.lanes {
            asks.extend(lane.join().ok().context("a lane of requests ended badly")??);
        }
        asks.sort_by_key(|ask| ask.sent);
        Ok(asks)
    }
}

/// The last failed request begun at or after `since`, as time after it.
pub fn last_failure(asks: &[Ask], since: Instant) -> Option<Duration> {
    asks.iter()
        .filter(|ask| ask.outcome.is_err() && ask.sent + ask.took >= since)
        .map(|ask| ask.sent.saturating_duration_since(since))
        .max()
}

fn ask_on(
    host: &str,
    addr: SocketAddr,
    first: Instant,
    every: Duration,
    stop: &AtomicBool,
) -> Vec<Ask> {
    let mut asks = Vec::new();
    let mut next = first;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        let outcome = http::ask(addr, TIMEOUT).map_err(|error| format!("{error:#}"));
        asks.push(Ask { host: host.to_owned(), sent, took: sent.elapsed(), outcome });
        next = (next + every).max(Instant::now());
    }
    asks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(sent: Instant, failed: bool) -> Ask {
        let client = "10.88.0.100:1".parse().unwrap();
        let answer = Answer { task: "web.1".into(), node: "n1".into(), client };
        let outcome = if failed { Err("no connection".into()) } else { Ok(answer) };
        Ask { host: "n1".into(), sent, took: Duration::from_millis(5), outcome }
    }

    #[test]
    fn the_last_failure_counts_from_the_kill() {
        let kill = Instant::now();
        let at = |ms| kill + Duration::from_millis(ms);
        let asks = [ask(at(0), true), ask(at(40), true), ask(at(60), false)];
        assert_eq!(last_failure(&asks, kill), Some(Duration::from_millis(40)));
        assert_eq!(last_failure(&asks[2..], kill), None);
        assert_eq!(last_failure(&asks, at(100)), None, "failures before the kill are not its own");
    }
}
