//! What happened, line by line: its hash proves that a seed is a run, its end explains a failure.

use std::collections::VecDeque;
use std::fmt;
use std::hash::Hasher;

use openraft_rt_sim::SimInstant;
use parking_lot::Mutex;

/// Lines that are kept for the report of a failure.
const KEPT: usize = 300;

/// The run's diary.
pub(super) struct Trace {
    inner: Mutex<Inner>,
    /// Prints every line as it comes.
    aloud: bool,
}

struct Inner {
    hash: Fnv,
    lines: VecDeque<String>,
}

impl Trace {
    pub(super) fn new(aloud: bool) -> Self {
        let inner = Inner { hash: Fnv::default(), lines: VecDeque::new() };
        Self { inner: Mutex::new(inner), aloud }
    }

    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let now = SimInstant::try_now().map_or(0, |now| now.elapsed_since_start().as_micros());
        let line = format!("{:>4}.{:06} {what}", now / 1_000_000, now % 1_000_000);
        if self.aloud {
            eprintln!("{line}");
        }
        let mut inner = self.inner.lock();
        inner.hash.write(line.as_bytes());
        if inner.lines.len() == KEPT {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
    }

    pub(super) fn hash(&self) -> u64 {
        self.inner.lock().hash.finish()
    }

    pub(super) fn newest(&self) -> Vec<String> {
        self.inner.lock().lines.iter().cloned().collect()
    }
}

/// FNV-1a (Fowler, Noll, Vo): the same in every process, unlike the standard library's hasher.
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(super) fn fnv(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::default();
    hash.write(bytes);
    hash.finish()
}
