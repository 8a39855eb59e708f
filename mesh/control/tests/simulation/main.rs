//! The whole of control under a seed: agents that crash, lag and are cut off, users that change
//! their minds, nodes that come, go and change their roles, roots that roll over, proposals that are
//! lost, leaders that change; then everything heals.
//!
//! Some invariants hold at every instant, the others once all is healed; each has its own file. A
//! failure names its seed: `SHOAL_SEED=17 cargo nextest run -p shoal-control simulation` repeats it,
//! and `SHOAL_SEEDS=500` runs that many.

mod agent;
mod invariants;
mod operator;
mod seen;
mod user;
mod world;

use seen::Seen;
use world::World;

const SEEDS: u64 = 48;

/// Names the seed of a world that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SHOAL_SEED={}", self.0);
        }
    }
}

fn run(seed: u64) -> World {
    let _named = Seed(seed);
    let mut world = World::new(seed);
    for _ in 0..400 {
        world.tick();
        invariants::always(&mut world);
    }
    world.heal();
    for _ in 0..1_200 {
        world.tick();
        invariants::always(&mut world);
        if world.quiet_ticks() > 60 {
            break;
        }
    }
    invariants::healed(&world);
    world
}

fn seeds() -> u64 {
    let seeds = std::env::var("SHOAL_SEEDS").ok();
    seeds.map_or(SEEDS, |seeds| seeds.parse().expect("SHOAL_SEEDS is a number"))
}

/// A part of the seeds, so that the parts run side by side.
fn run_part(part: u64) {
    match std::env::var("SHOAL_SEED").map(|seed| seed.parse()) {
        Ok(Ok(seed)) => drop(run(seed)),
        Ok(Err(error)) => panic!("SHOAL_SEED must be a number: {error}"),
        Err(_) => (0..seeds()).filter(|seed| seed % 4 == part).for_each(|seed| drop(run(seed))),
    }
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_a() {
    run_part(0);
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_b() {
    run_part(1);
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_c() {
    run_part(2);
}

#[test]
fn the_cluster_keeps_its_promises_under_chaos_d() {
    run_part(3);
}

#[test]
fn the_same_seed_gives_the_same_batches() {
    let (first, second) = (run(1_000), run(1_000));
    assert_eq!(first.batches, second.batches);
    assert!(first.batches.len() > 50, "something happened: {}", first.batches.len());
}

#[test]
fn chaos_is_chaos() {
    // A simulation that never loses a batch or a node proves nothing.
    let mut seen = Seen::default();
    for seed in 2_000..2_006 {
        seen.add(&run(seed).seen);
    }
    assert!(seen.lost > 12 && seen.leaders > 8 && seen.down > 12, "{seen:?}");
    assert!(seen.failed > 12 && seen.refused > 12 && seen.replaced > 0, "{seen:?}");
    assert!(seen.joined > 12 && seen.removed > 3 && seen.demoted > 8, "{seen:?}");
    assert!(seen.forced > 3 && seen.copied > 3 && seen.called_off > 2, "{seen:?}");
    assert!(seen.rolled_over > 8 && seen.superseded > 2 && seen.unanswered > 12, "{seen:?}");
}
