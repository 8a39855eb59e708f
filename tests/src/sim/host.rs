//! A machine: a disk, clocks, and what runs on it while the power is on.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::clock::HostClock;
use super::disk::Disk;
use super::manager::{Running, Start};

/// One machine.
pub(super) struct Host {
    pub(super) number: u32,
    pub(super) disk: Arc<Disk>,
    pub(super) clock: HostClock,
    pub(super) running: Mutex<Option<Arc<Running>>>,
    pub(super) state: Mutex<HostState>,
    /// Tasks that run here.
    pub(super) runs: Mutex<BTreeSet<String>>,
}

/// What a machine is in the cluster.
#[derive(Default)]
pub(super) struct HostState {
    pub(super) powered: bool,
    /// Goes up when the power fails: what ran before does not run any more.
    pub(super) boots: u64,
    /// Its node, once it has joined.
    pub(super) node_id: Option<String>,
    /// How its manager is started; `None` on a worker.
    pub(super) manager: Option<Start>,
    /// How many nodes it has been.
    pub(super) nodes: u64,
}

impl Host {
    pub(super) fn new(number: u32, rate: u64) -> Self {
        let state = HostState { powered: true, ..HostState::default() };
        Self {
            number,
            disk: Arc::default(),
            clock: HostClock::new(rate),
            running: Mutex::new(None),
            state: Mutex::new(state),
            runs: Mutex::default(),
        }
    }

    pub(super) fn is_powered(&self) -> bool {
        self.state.lock().powered
    }

    pub(super) fn is_member(&self) -> bool {
        self.state.lock().node_id.is_some()
    }
}
