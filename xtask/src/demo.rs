//! The demo: a cluster of three hosts, one published port, two kills, real packets.
//!
//! 1. Three managers form a cluster over mutual TLS, two of them by a join token; `web` gets three
//!    replicas on port 8080.
//! 2. The client asks each host 30 times: every task answers through every host, and every task
//!    sees the client's own address.
//! 3. Requests go on steadily while one task is killed, then a whole host.
//!
//! Each promise is printed with what was measured; a broken one makes the exit code 1. What the
//! lab made is taken away whatever happens (`guard.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use shoal_tests::lab::asker::{Ask, Asker, TIMEOUT, last_failure};
use shoal_tests::lab::tasks::Task;
use shoal_tests::lab::{CLIENT, CLIENT_ADDR, Lab, http, wait_for};

use crate::shell::{need_root, root};
use crate::table::Table;
use crate::{build, guard, setup};

/// A prefix of its own, so that a demo runs beside a user's lab.
const PREFIX: &str = "demo";
const PORT: u16 = 8080;
const REPLICAS: usize = 3;
/// Requests to each host while nothing is broken.
const REQUESTS: usize = 30;
/// A new connection to each host this often while things are killed.
const EVERY: Duration = Duration::from_millis(20);
/// A dead task is known at once and leaves every ring in well under a second.
const TASK_BOUND: Duration = Duration::from_secs(2);
/// A dead host is known after three missed heartbeats of one second.
const HOST_BOUND: Duration = Duration::from_secs(4);
/// How long a replacement may take: the restart delay is five seconds.
const REPLACED: Duration = Duration::from_secs(30);
/// How long everything must have been well before the next kill.
const QUIET: Duration = Duration::from_secs(1);

/// What to show.
#[derive(clap::Args)]
pub struct Args {
    /// The host to kill: a name, or `leader`, which is the harder case.
    #[arg(long, default_value = "leader")]
    victim: String,
    /// The lab's prefix, for demos beside each other.
    #[arg(long, default_value = PREFIX, hide = true)]
    prefix: String,
}

/// One promise and whether it was kept.
struct Promise {
    text: String,
    measured: String,
    kept: bool,
}

/// The demo's story so far.
struct Demo {
    lab: Lab,
    started: Instant,
    promises: Vec<Promise>,
}

/// Runs the demo and cleans up.
pub fn run(args: Args) -> Result<ExitCode> {
    need_root("the demo")?;
    setup::for_lab()?;
    let shoal = build::shoal(false)?;
    guard::guarded(&args.prefix, || {
        let lab = Lab::owned(&root(), &args.prefix, 3)?.with_binary(shoal);
        let mut demo = Demo { lab, started: Instant::now(), promises: Vec::new() };
        let outcome = demo.play(&args.victim);
        if let Err(error) = outcome {
            for host in demo.lab.nodes() {
                eprintln!("{}", demo.lab.log_tail(&host));
            }
            return Err(error);
        }
        Ok(demo.verdict())
    })
}

impl Demo {
    fn play(&mut self, victim: &str) -> Result<()> {
        self.say("three hosts on one switch, and a client at 10.88.0.100");
        self.lab.form()?;
        self.say("three managers form a cluster, joined by a token and over mutual TLS");
        let (image, binary) = self.lab.image()?;
        let (replicas, publish) = (REPLICAS.to_string(), format!("{PORT}:80"));
        let create =
            ["service", "create", "--name", "web", "--replicas", &replicas, "-p", &publish];
        let args = [&image, &binary, "responder", "--port", "80"];
        self.lab.shoal("n1", &[create.as_slice(), &args].concat())?;
        let places: Vec<String> =
            self.lab.tasks().iter().map(|t| format!("{} on {}", t.name, t.host)).collect();
        self.say(&format!("service web converged on port {PORT}: {}", places.join(", ")));

        let hosts = self.lab.nodes();
        self.ask_each("each host is asked", &hosts)?;
        self.kills(victim)?;
        let checksums = self.lab.check_checksums();
        let seen = checksums.as_ref().map_or_else(ToString::to_string, |()| "none".to_owned());
        self.promise("no host or task sees a bad checksum", &seen, checksums.is_ok());
        Ok(())
    }

    /// The two kills, under steady requests.
    fn kills(&mut self, victim: &str) -> Result<()> {
        let hosts = self.lab.nodes();
        let asker = Asker::start(&self.lab, &hosts, PORT, EVERY);
        std::thread::sleep(QUIET);

        let task = self.lab.tasks().into_iter().next().context("no task is running")?;
        let task_killed = Instant::now();
        self.lab.kill_task(&task)?;
        self.say(&format!("{} on {} is killed", task.name, task.host));
        let replaced = self.wait_for_tasks(|other| other.pid != task.pid)?;
        self.say(&format!("{} is replaced after {}", task.name, seconds(replaced)));
        std::thread::sleep(QUIET);

        let victim = self.victim(victim)?;
        let host_killed = Instant::now();
        self.lab.kill_host(&victim)?;
        self.say(&format!("host {victim} is killed: its link and every process on it"));
        let replaced = self.wait_for_tasks(|task| task.host != victim)?;
        self.say(&format!("all tasks run on the other hosts after {}", seconds(replaced)));
        // A request begun before now may still be waiting for its failure.
        std::thread::sleep(TIMEOUT + QUIET);
        let asks = asker.stop()?;

        let rest: Vec<String> = hosts.into_iter().filter(|host| *host != victim).collect();
        self.ask_each(&format!("without {victim}"), &rest)?;

        let before = &asks[..asks.partition_point(|ask| ask.sent < host_killed)];
        let calm: Vec<Ask> =
            before.iter().filter(|ask| ask.sent + ask.took < task_killed).cloned().collect();
        self.no_failures("while nothing is broken, no request fails", &calm);
        self.failures(&format!("after the kill of {}", task.name), before, task_killed, TASK_BOUND);
        let others: Vec<Ask> = asks.into_iter().filter(|ask| ask.host != victim).collect();
        self.failures(&format!("after the kill of {victim}"), &others, host_killed, HOST_BOUND);
        Ok(())
    }

    fn victim(&self, wanted: &str) -> Result<String> {
        if wanted != "leader" {
            self.lab.check_host(wanted)?;
            ensure!(wanted != CLIENT, "the client is not a host to kill");
            return Ok(wanted.to_owned());
        }
        let nodes = self.lab.shoal_json("n1", &["node", "ls", "--format", "json"])?;
        let leader = nodes.iter().find(|node| node["ManagerStatus"] == "Leader");
        let name = leader.and_then(|node| node["Hostname"].as_str());
        Ok(name.context("no node is the leader")?.to_owned())
    }

    /// Waits until all replicas run among the tasks that `counts`.
    fn wait_for_tasks(&self, counts: impl Fn(&Task) -> bool) -> Result<Duration> {
        let started = Instant::now();
        wait_for("the tasks to be replaced", REPLACED, || {
            let names: BTreeSet<String> =
                self.lab.tasks().into_iter().filter(&counts).map(|task| task.name).collect();
            ensure!(names.len() == REPLICAS, "only {names:?} run");
            Ok(())
        })?;
        Ok(started.elapsed())
    }

    /// Asks each host and holds the answers against the promises.
    fn ask_each(&mut self, what: &str, hosts: &[String]) -> Result<()> {
        println!();
        let mut table = Table::new(&["THROUGH", "ASKED", "FAILED", "ANSWERED BY", "CLIENT SEEN"]);
        let (mut all_tasks, mut all_own, mut failures) = (true, true, 0);
        for host in hosts {
            let addr = SocketAddr::new(self.lab.addr(host).into(), PORT);
            let answers = self.lab.inside(CLIENT, || {
                (0..REQUESTS).map(|_| http::ask(addr, TIMEOUT)).collect::<Vec<_>>()
            })?;
            let mut tasks: BTreeMap<String, usize> = BTreeMap::new();
            let mut clients = BTreeSet::new();
            let mut failed = 0;
            for answer in answers {
                match answer {
                    Ok(answer) => {
                        let place = format!("{}@{}", answer.task, answer.node);
                        *tasks.entry(place).or_default() += 1;
                        clients.insert(answer.client.ip());
                    }
                    Err(_) => failed += 1,
                }
            }
            all_tasks &= tasks.len() == REPLICAS;
            all_own &= clients.iter().eq([&std::net::IpAddr::from(CLIENT_ADDR)]);
            failures += failed;
            let by: Vec<String> = tasks.iter().map(|(task, n)| format!("{task} ({n})")).collect();
            let seen: Vec<String> = clients.iter().map(ToString::to_string).collect();
            let cells = [host.clone(), REQUESTS.to_string(), failed.to_string()];
            table.row([cells.as_slice(), &[by.join(" "), seen.join(" ")]].concat());
        }
        println!("{}", table.render());
        let n = hosts.len();
        let text = format!("{what}: no request fails");
        self.promise(&text, &format!("{failures} of {}", REQUESTS * n), failures == 0);
        let text = format!("{what}: every task answers through every host");
        self.promise(&text, &format!("{REPLICAS} tasks, {n} hosts"), all_tasks);
        let text = format!("{what}: every task sees the client's address");
        self.promise(&text, &CLIENT_ADDR.to_string(), all_own);
        Ok(())
    }

    fn no_failures(&mut self, text: &str, asks: &[Ask]) {
        let failed = asks.iter().filter(|ask| ask.outcome.is_err()).count();
        let measured = format!("{failed} of {}", asks.len());
        self.promise(text, &measured, failed == 0 && !asks.is_empty());
    }

    fn failures(&mut self, when: &str, asks: &[Ask], since: Instant, bound: Duration) {
        let window: Vec<Ask> =
            asks.iter().filter(|ask| ask.sent + ask.took >= since).cloned().collect();
        let failed: Vec<&Ask> = window.iter().filter(|ask| ask.outcome.is_err()).collect();
        let last = last_failure(&window, since);
        let mut measured = format!("{} of {} fail", failed.len(), window.len());
        if let Some(last) = last {
            measured += &format!(", the last one sent after {}", seconds(last));
        }
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in failed.iter().filter_map(|ask| ask.outcome.as_ref().err()) {
            *reasons.entry(reason).or_default() += 1;
        }
        for (reason, count) in reasons {
            self.say(&format!("{when}: {count} × {reason}"));
        }
        let text = format!("{when}, requests fail for under {} s", bound.as_secs());
        let kept = !window.is_empty() && last.is_none_or(|last| last < bound);
        self.promise(&text, &measured, kept);
    }

    fn promise(&mut self, text: &str, measured: &str, kept: bool) {
        self.promises.push(Promise { text: text.to_owned(), measured: measured.to_owned(), kept });
    }

    /// Prints the promises; the exit code says whether all were kept.
    fn verdict(&self) -> ExitCode {
        let mut table = Table::new(&["PROMISE", "MEASURED", ""]);
        for Promise { text, measured, kept } in &self.promises {
            let verdict = if *kept { "kept" } else { "BROKEN" };
            table.row(vec![text.clone(), measured.clone(), verdict.to_owned()]);
        }
        println!("\n{}", table.render());
        if self.promises.iter().all(|promise| promise.kept) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn say(&self, text: &str) {
        println!("{:>6}  {text}", seconds(self.started.elapsed()));
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f32())
}
