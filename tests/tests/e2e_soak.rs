//! Managers are killed at random while services come, change and go: nothing acknowledged is lost.
//!
//! Half a minute by default. `SHOAL_SOAK_SECONDS=300 cargo test -p shoal-tests --test e2e_soak` is a
//! long one (nextest would end it as hung), `SHOAL_SEED` chooses the kills.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use shoal_api::id::IdSource;
use shoal_tests::cluster::Cluster;
use shoal_tests::needs_root;

/// How services begin that somebody tries to make while no disk has room.
const FULL: &str = "full-";

/// How long one test kills.
fn seconds() -> u64 {
    number("SHOAL_SOAK_SECONDS").unwrap_or(25)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number is wanted"))
}

fn seed() -> u64 {
    let seed = number("SHOAL_SEED").unwrap_or(7);
    println!("SHOAL_SEED={seed}");
    seed
}

/// What a client knows of its own services: replicas, or `None` once removed. A call that failed
/// may have taken effect or not, so there may be several.
type Known = BTreeMap<String, Vec<Option<u64>>>;

/// One client with services of its own.
struct User<'a> {
    cluster: &'a Cluster,
    /// Made once: no file of it can be written while a task runs from it.
    image: &'a (String, String),
    number: u64,
    chance: IdSource,
    known: Known,
    /// Not found when it was asked for last.
    given_up: BTreeSet<String>,
    acknowledged: usize,
    failed: usize,
}

impl User<'_> {
    fn run(mut self, stop: &AtomicBool) -> Self {
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            self.act(round);
        }
        self
    }

    fn act(&mut self, round: u64) {
        let there = |states: &[Option<u64>]| states.iter().any(Option::is_some);
        let own = self
            .known
            .iter()
            .filter(|(name, states)| there(states) && !self.given_up.contains(*name));
        let own: Vec<String> = own.map(|(name, _)| name.clone()).collect();
        let some = |chance: &mut IdSource| {
            let at = usize::try_from(chance.next_u64() % own.len().max(1) as u64).unwrap_or(0);
            own.get(at).cloned()
        };
        match (self.chance.next_u64() % 4, some(&mut self.chance)) {
            (0, Some(name)) => self.call(&["service", "rm", &name], &name, None),
            (1 | 2, Some(name)) => {
                let replicas = self.chance.next_u64() % 3;
                let wish = format!("{name}={replicas}");
                self.call(&["service", "scale", "--detach", &wish], &name, Some(replicas));
            }
            _ if own.len() < 12 => {
                let name = format!("u{}-{round}", self.number);
                let create = ["service", "create", "--detach", "--replicas", "1", "--name", &name];
                let (image, binary) = &self.image;
                let task = [image.as_str(), binary, "responder", "--port", "80"];
                self.call(&[create.as_slice(), &task].concat(), &name, Some(1));
            }
            _ => {}
        }
    }

    /// Asks any host and keeps what may be true from now on.
    fn call(&mut self, args: &[&str], name: &str, wanted: Option<u64>) {
        let hosts = self.cluster.lab.nodes();
        let at = self.chance.next_u64() % hosts.len() as u64;
        let host = &hosts[usize::try_from(at).unwrap_or(0)];
        let Ok(output) = self.cluster.lab.shoal_output(host, args) else { return };
        let text = String::from_utf8_lossy(&output.stderr);
        let before = self.known.get(name).cloned().unwrap_or_else(|| vec![None]);
        let after = if output.status.success() {
            self.acknowledged += 1;
            vec![wanted]
        } else if text.contains("Cannot connect to the Shoal daemon") {
            // Nobody heard it.
            before
        } else if text.contains("not found") || text.contains("no such") {
            // Gone, or not there yet: what was not confirmed may still be stored later.
            assert!(before.contains(&None), "{name} was acknowledged and is not found");
            self.given_up.insert(name.to_owned());
            before
        } else {
            self.failed += 1;
            let mut after = before;
            if !after.contains(&wanted) {
                after.push(wanted);
            }
            after
        };
        self.known.insert(name.to_owned(), after);
    }
}

/// What the cluster says through a host: replicas wanted, by name.
fn stored(cluster: &Cluster, host: &str) -> Result<BTreeMap<String, u64>> {
    let listed = cluster.lab.shoal_json(host, &["service", "ls", "--format", "json"])?;
    listed
        .iter()
        .map(|service| {
            let name = service["Name"].as_str().context("no name")?.to_owned();
            // "1/2" or "2/2": running and wanted.
            let replicas = service["Replicas"].as_str().context("no replicas")?;
            let wanted = replicas.split('/').nth(1).context("no wish")?;
            let digits: String = wanted.chars().take_while(char::is_ascii_digit).collect();
            Ok((name, digits.parse()?))
        })
        .collect()
}

fn check(cluster: &Cluster, known: &Known) {
    let hosts = cluster.lab.nodes();
    for host in &hosts {
        cluster.wait("every daemon to run", 30, || {
            if cluster.lab.daemon_pid(host).is_none() {
                cluster.lab.start(host)?;
            }
            Ok(())
        });
    }
    for host in &hosts {
        let stored = cluster.wait("the cluster to answer", 40, || stored(cluster, host));
        for (name, possible) in known {
            let found = stored.get(name).copied();
            assert!(possible.contains(&found), "{name} is {found:?} through {host}: {possible:?}");
        }
        let strangers: Vec<_> = stored
            .keys()
            .filter(|name| !known.contains_key(*name) && !name.starts_with(FULL))
            .collect();
        assert!(strangers.is_empty(), "nobody made {strangers:?}");
        let log = std::fs::read_to_string(cluster.lab.log(host)).unwrap_or_default();
        assert!(!log.contains("damaged"), "{}", cluster.lab.log_tail(host));
        assert!(!log.contains("panicked"), "{}", cluster.lab.log_tail(host));
    }
}

/// Lets users write while `disturb` does its harm again and again.
fn soak(cluster: &Cluster, seed: u64, mut disturb: impl FnMut(&mut IdSource) -> Result<()>) {
    let image = &cluster.must(cluster.lab.image());
    let stop = AtomicBool::new(false);
    let mut trouble = None;
    let users = std::thread::scope(|scope| {
        let users: Vec<_> = (0..3)
            .map(|number| {
                let chance = IdSource::new(seed ^ (number << 32));
                let known = Known::new();
                let given_up = BTreeSet::new();
                let (acknowledged, failed) = (0, 0);
                let user =
                    User { cluster, image, number, chance, known, given_up, acknowledged, failed };
                let stop = &stop;
                scope.spawn(move || user.run(stop))
            })
            .collect();
        let mut chance = IdSource::new(seed);
        let begun = Instant::now();
        let mut kills = 0;
        while begun.elapsed() < Duration::from_secs(seconds()) {
            if let Err(error) = disturb(&mut chance) {
                trouble = Some(error);
                break;
            }
            kills += 1;
        }
        stop.store(true, Ordering::Relaxed);
        println!("{kills} disturbances in {:?}", begun.elapsed());
        let ended = |user: std::thread::ScopedJoinHandle<'_, _>| {
            user.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        users.into_iter().map(ended).collect::<Vec<_>>()
    });
    if let Some(error) = trouble {
        cluster.must::<()>(Err(error));
    }
    let mut known = Known::new();
    let mut acknowledged = 0;
    for user in users {
        println!(
            "user {}: {} acknowledged, {} failed",
            user.number, user.acknowledged, user.failed
        );
        acknowledged += user.acknowledged;
        known.extend(user.known);
    }
    assert!(acknowledged > 20, "only {acknowledged} writes were acknowledged");
    check(cluster, &known);
}

/// A time between kills: from at once to longer than an election.
fn pause(chance: &mut IdSource) {
    std::thread::sleep(Duration::from_millis(chance.next_u64() % 2_500));
}

fn kill_some(cluster: &Cluster, chance: &mut IdSource) -> Result<()> {
    let hosts = cluster.lab.nodes();
    // One of three most of the time; now and then all at once.
    let victims: Vec<&String> = match chance.next_u64() % 8 {
        0 => hosts.iter().collect(),
        other => vec![&hosts[usize::try_from(other)? % hosts.len()]],
    };
    for host in &victims {
        if cluster.lab.daemon_pid(host).is_some() {
            cluster.lab.kill(host)?;
        }
    }
    pause(chance);
    for host in victims {
        if cluster.lab.daemon_pid(host).is_none() {
            cluster.lab.start(host)?;
        }
    }
    pause(chance);
    Ok(())
}

#[test]
fn random_kills_of_managers_lose_no_acknowledged_write() {
    needs_root!();
    let cluster = Cluster::up("s", 3);
    soak(&cluster, seed(), |chance| kill_some(&cluster, chance));
}

/// The command that makes a service of 50 KB, which runs nothing.
fn large(name: &str) -> Vec<String> {
    let ballast = format!("BALLAST={}", "x".repeat(50_000));
    let words = ["service", "create", "--detach", "--replicas", "0", "--name", name, "--env"];
    let words = words.into_iter().chain([ballast.as_str(), "rootfs:/", "/bin/true"]);
    words.map(str::to_owned).collect()
}

/// Fills what is left of a file system.
fn fill(folder: &Path) -> Result<()> {
    let mut file = std::fs::File::create(folder.join("ballast"))?;
    let block = vec![0x5a; 64 << 10];
    loop {
        match std::io::Write::write_all(&mut file, &block) {
            Ok(()) => {}
            Err(full) if full.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(other) => bail!("cannot fill {}: {other}", folder.display()),
        }
    }
}

#[test]
fn full_disks_between_the_kills_lose_nothing_either() {
    needs_root!();
    let cluster = Cluster::hosts("f", 3);
    let lab = &cluster.lab;
    for host in lab.nodes() {
        let state = lab.host_dir(&host).join("state");
        std::fs::create_dir_all(&state).unwrap();
        let options = Some("size=96m,mode=0700");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &state, Some("tmpfs"), flags, options).unwrap();
    }
    cluster.must(lab.form());
    let (mut refused, mut tried) = (0, 0);
    let mut stored_full: Vec<String> = Vec::new();
    soak(&cluster, seed(), |chance| {
        let hosts = lab.nodes();
        let host = &hosts[usize::try_from(chance.next_u64() % 3)?];
        let state = lab.host_dir(host).join("state");
        // All disks now and then: then nothing can be written, and somebody says why.
        let all = chance.next_u64() % 3 == 0;
        for host in hosts.iter().filter(|each| all || *each == host) {
            fill(&lab.host_dir(host).join("state"))?;
        }
        if all {
            // What is free inside of the log's file takes some of them.
            for _ in 0..40 {
                let name = format!("{FULL}{tried}");
                tried += 1;
                let output = {
                    let words = large(&name);
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    lab.shoal_output(host, &words)?
                };
                if output.status.success() {
                    stored_full.push(name);
                    continue;
                }
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                refused += usize::from(text.contains("cannot write to its disk"));
                break;
            }
        } else {
            // A daemon is killed with its disk full, and starts once there is room.
            lab.kill(host)?;
        }
        pause(chance);
        for host in &hosts {
            let ballast = lab.host_dir(host).join("state/ballast");
            if ballast.exists() {
                std::fs::remove_file(ballast)?;
            }
        }
        if lab.daemon_pid(host).is_none() {
            lab.start(host).with_context(|| format!("state in {}", state.display()))?;
        }
        shoal_tests::lab::wait_for("writes to pass again", Duration::from_secs(20), || {
            let there = stored(&cluster, host)?;
            for name in &stored_full {
                ensure!(there.contains_key(name), "{name} was acknowledged and is lost");
            }
            // One that was refused for want of room may have been stored since.
            for name in there.keys().filter(|name| name.starts_with(FULL)) {
                stored_full.retain(|kept| kept != name);
                lab.shoal(host, &["service", "rm", name])?;
            }
            Ok(())
        })?;
        pause(chance);
        Ok(())
    });
    println!("{refused} writes were refused with the disk as the reason");
}
