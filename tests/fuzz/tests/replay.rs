//! Every input that once found something, and changed seeds for a moment: what fuzzing keeps right
//! on machines without its tools.

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use shoal_api::id::IdSource;
use shoal_fuzz::{TARGETS, Target};

/// For each target. Enough for thousands of inputs, and it does not hold up a test run.
const TIME: Duration = Duration::from_secs(2);

#[test]
fn what_was_found_stays_fixed() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target.name);
        // No folder: nothing was found yet.
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let input = std::fs::read(file.path()).unwrap();
            assert!(catch_unwind(|| (target.run)(&input)).is_ok(), "{:?}", file.path());
        }
    }
}

#[test]
fn seeds_are_good_inputs() {
    for target in TARGETS {
        assert!(!(target.seeds)().is_empty(), "{}", target.name);
        (target.seeds)().iter().for_each(|seed| (target.run)(seed));
    }
}

#[test]
fn changed_tokens_find_nothing() {
    changed("token");
}

#[test]
fn changed_certificates_find_nothing() {
    changed("certificate");
}

#[test]
fn changed_streams_find_nothing() {
    changed("stream");
}

#[test]
fn changed_backups_find_nothing() {
    changed("backup");
}

#[test]
fn changed_frames_find_nothing() {
    changed("frame");
}

fn changed(name: &str) {
    let target: Target = TARGETS
        .into_iter()
        .find(|target| target.name == name)
        .expect("tests name targets that there are");
    let mut random = IdSource::new(1);
    let seeds = (target.seeds)();
    let end = Instant::now() + TIME;
    let mut pool = seeds.clone();
    let mut runs = 0_u64;
    while Instant::now() < end {
        let mut input = pool[below(&mut random, pool.len())].clone();
        for _ in 0..=below(&mut random, 4) {
            change(&mut input, &pool, &mut random);
        }
        if catch_unwind(|| (target.run)(&input)).is_err() {
            panic!("{name}: run {runs} finds something with {input:02x?}");
        }
        // Some changes are built upon, so that inputs get far from the seeds.
        if random.next_u64().is_multiple_of(64) && input.len() < 4096 {
            let place = below(&mut random, 256);
            if place < pool.len() && place >= seeds.len() {
                pool[place] = input;
            } else if pool.len() < 256 {
                pool.push(input);
            }
        }
        runs += 1;
    }
    assert!(runs > 50, "{runs} runs only");
}

fn change(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut IdSource) {
    let place = below(random, input.len() + 1);
    let byte = random.next_u64().to_le_bytes()[0];
    match random.next_u64() % 6 {
        0 => input.insert(place, byte),
        1 => input.truncate(place),
        2 => drop(input.drain(place..(place + below(random, 8)).min(input.len()).max(place))),
        3 => {
            let other = &pool[below(random, pool.len())];
            input.truncate(place);
            input.extend(&other[below(random, other.len() + 1)..]);
        }
        4 => {
            // Lengths and versions that are far off.
            let end = (place + 4).min(input.len());
            input.splice(place..end, [0xff, 0xff, 0xff, byte]);
        }
        _ => {
            if let Some(at) = input.get_mut(place) {
                *at ^= 1 << (byte % 8);
            }
        }
    }
}

fn below(random: &mut IdSource, end: usize) -> usize {
    let end = u64::try_from(end.max(1)).expect("a length is 64 bits");
    usize::try_from(random.next_u64() % end).expect("it is below a length")
}
