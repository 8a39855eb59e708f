//! The whole cluster under a seed, with Raft in it: it keeps its promises under every fault that the
//! simulation knows, and every promise is one that a broken rule would break.
//!
//! `cargo xtask sim --seeds N` runs any number of seeds, `cargo xtask sim --seed S` one alone with all
//! that happens; `SHOAL_SEED=17 cargo nextest run -p shoal-tests simulation` repeats one here.

use shoal_tests::sim::{self, Report, Rules, Seen};

/// In all parts together.
const SEEDS: u64 = 208;
const PARTS: u64 = 4;

/// A part of the seeds, so that the parts run side by side.
fn check_part(part: u64) {
    let seeds: Vec<u64> = match std::env::var("SHOAL_SEED").map(|seed| seed.parse()) {
        Ok(Ok(seed)) if part == 0 => vec![seed],
        Ok(Ok(_)) => Vec::new(),
        Ok(Err(error)) => panic!("SHOAL_SEED must be a number: {error}"),
        Err(_) => (0..SEEDS).filter(|seed| seed % PARTS == part).collect(),
    };
    for seed in seeds {
        let report = sim::run(seed, Rules::default(), false);
        assert!(report.broken.is_empty(), "{}", explain(&report));
    }
}

fn explain(report: &Report) -> String {
    let Report { seed, broken, trace, .. } = report;
    let (broken, trace) = (broken.join("\n"), trace.join("\n"));
    format!("{trace}\nseed {seed}:\n{broken}\nagain: cargo xtask sim --seed {seed}")
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_a() {
    check_part(0);
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_b() {
    check_part(1);
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_c() {
    check_part(2);
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_d() {
    check_part(3);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (first, second) =
        (sim::run(7, Rules::default(), false), sim::run(7, Rules::default(), false));
    assert_eq!(first.trace, second.trace);
    assert_eq!(first.hash, second.hash);
    assert_ne!(first.hash, sim::run(8, Rules::default(), false).hash);
}

#[test]
fn chaos_is_chaos() {
    // A simulation in which nothing goes wrong, or in which nothing works, proves nothing.
    let seen = (1_000..1_012)
        .map(|seed| sim::run(seed, Rules::default(), false).seen)
        .fold(Seen::default(), |all, seen| all.and(&seen));
    assert!(seen.leaders.len() > 20 && seen.crashes > 40 && seen.blackouts > 5, "{seen:?}");
    assert!(seen.lost_writes > 8 && seen.torn_writes > 4 && seen.slow_disks > 10, "{seen:?}");
    assert!(seen.partitions > 30 && seen.one_way > 10 && seen.jumps > 15, "{seen:?}");
    assert!(seen.dropped > 400 && seen.doubled > 30 && seen.waited > 0, "{seen:?}");
    assert!(seen.member_changes > 60 && seen.node_changes > 40, "{seen:?}");
    assert!(seen.snapshots > 5 && seen.committed > 1_000, "{seen:?}");
    assert!(seen.stored > 120 && seen.read > 400 && seen.refused > 50, "{seen:?}");
    assert!(seen.unknown > 10 && seen.not_taken > 10, "{seen:?}");
}

/// Most seeds that may be needed until a broken rule shows.
const TRIES: u64 = 40;

/// A broken rule breaks one of these promises, and a run says so.
fn check_broken(rules: Rules, promises: &[&str]) {
    let names = |line: &String| promises.iter().any(|promise| line.starts_with(promise));
    let found = (0..TRIES).any(|seed| sim::run(seed, rules, false).broken.iter().any(names));
    assert!(found, "nothing broke {promises:?} under {rules:?}");
}

#[test]
fn disks_that_lie_lose_what_was_acknowledged_and_it_is_found() {
    let promises = ["leader completeness", "state machine safety", "no acknowledged write lost"];
    check_broken(Rules { lying_disks: 0b11_1111, ..Rules::default() }, &promises);
}

#[test]
fn a_vote_that_is_forgotten_makes_two_leaders_and_it_is_found() {
    check_broken(Rules { forgets_vote: true, ..Rules::default() }, &["election safety"]);
}

#[test]
fn an_answer_before_the_commit_is_found() {
    let rules = Rules { answers_before_commit: true, ..Rules::default() };
    check_broken(rules, &["no acknowledged write lost"]);
}

#[test]
fn a_refusal_before_the_commit_is_found() {
    let rules = Rules { refuses_at_once: true, hurried: true, ..Rules::default() };
    check_broken(rules, &["linearizability"]);
}

#[test]
fn a_read_that_does_not_ask_the_leader_is_found() {
    let promises = ["linearizability", "no state goes backwards"];
    check_broken(Rules { reads_at_once: true, ..Rules::default() }, &promises);
}

#[test]
fn a_leaders_loop_that_outlives_its_term_is_found() {
    let rules = Rules { never_steps_down: true, ..Rules::default() };
    check_broken(rules, &["no write by a stale leader"]);
}

#[test]
fn one_disk_that_lies_costs_nothing_while_nothing_else_fails() {
    // It counted for a quorum and does not have what it said: until it has caught up, one manager
    // less may fail than the others' number says. With a second failure no promise holds.
    let mut lost = 0;
    for seed in 0..6 {
        let rules = Rules { lying_disks: 0b10, only_liars_fail: true, ..Rules::default() };
        let report = sim::run(seed, rules, false);
        assert!(report.broken.is_empty(), "{}", explain(&report));
        lost += report.seen.lost_writes;
    }
    assert!(lost > 10, "the disk lost something: {lost}");
}
