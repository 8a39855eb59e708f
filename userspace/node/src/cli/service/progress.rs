//! Progress of a service: bars where stderr is a terminal, otherwise a line per change.
//!
//! On stderr, so that stdout holds the service's id alone.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_api::TaskState;

use super::converge::{Judgement, SlotState};

/// Docker shows no single slots above this many.
const SLOTS_MAX: usize = 20;

/// Steps from new to running, by which a slot's bar is filled.
const STEPS: [TaskState; 8] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
];

/// Characters of a slot's bar.
const BAR: usize = 50;

/// Where progress goes.
pub enum Progress {
    /// Nowhere.
    Quiet,
    /// A line for what changed.
    Lines {
        /// The last line of the whole.
        overall: String,
        /// The last error of each slot.
        errs: BTreeMap<u64, String>,
    },
    /// A terminal that is drawn over.
    Bars {
        /// All bars.
        bars: MultiProgress,
        /// The line of the whole.
        overall: ProgressBar,
        /// The bar of each slot.
        slots: BTreeMap<u64, ProgressBar>,
    },
}

impl Progress {
    /// Chooses by what stderr is.
    pub fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { overall: String::new(), errs: BTreeMap::new() };
        }
        let bars = MultiProgress::new();
        let overall = bars.add(text_line());
        Self::Bars { bars, overall, slots: BTreeMap::new() }
    }

    /// Shows how far the service is.
    pub fn show(&mut self, judgement: &Judgement) {
        let line = overall(judgement);
        match self {
            Self::Quiet => {}
            Self::Lines { overall, errs } => {
                if *overall != line {
                    eprintln!("{line}");
                    *overall = line;
                }
                for slot in judgement.slots.iter().filter(|slot| !slot.err.is_empty()) {
                    if errs.get(&slot.slot) != Some(&slot.err) {
                        eprintln!("{}", slot_line(slot, judgement.wanted));
                        errs.insert(slot.slot, slot.err.clone());
                    }
                }
            }
            Self::Bars { bars, overall, slots } => {
                if overall.message() != line {
                    overall.set_message(line);
                }
                slots.retain(|slot, bar| {
                    let keep = judgement.slots.iter().any(|state| state.slot == *slot);
                    if !keep {
                        bar.finish_and_clear();
                    }
                    keep
                });
                for slot in judgement.slots.iter().take(SLOTS_MAX) {
                    let line = slot_bar(slot, judgement.wanted);
                    let bar = slots.entry(slot.slot).or_insert_with(|| bars.add(text_line()));
                    // Drawn only when it says something new.
                    if bar.message() != line {
                        bar.set_message(line);
                    }
                }
            }
        }
    }

    /// The last words.
    pub fn converged(&mut self) {
        self.last("verify: Service converged");
    }

    /// Leaves what was drawn on the screen.
    pub fn stop(&mut self) {
        if let Self::Bars { overall, slots, .. } = self {
            slots.values().for_each(ProgressBar::abandon);
            overall.abandon();
        }
    }

    fn last(&mut self, line: &str) {
        self.stop();
        if !matches!(self, Self::Quiet) {
            eprintln!("{line}");
        }
    }
}

/// A line that we draw ourselves: a slot shows a bar or an error, as long as the terminal is wide.
fn text_line() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg}").expect("the template is a literal");
    ProgressBar::no_length().with_style(style)
}

fn overall(judgement: &Judgement) -> String {
    let Judgement { running, wanted, behind, .. } = judgement;
    let line = format!("overall progress: {running} out of {wanted} tasks");
    match behind {
        0 => line,
        _ if running < wanted => line,
        1 => format!("{line}, waiting for 1 node to hold them"),
        _ => format!("{line}, waiting for {behind} nodes to hold them"),
    }
}

fn slot_line(slot: &SlotState, wanted: u64) -> String {
    let err = match slot.err.as_str() {
        "" => String::new(),
        err => format!(" {err}"),
    };
    format!("{}/{wanted}: {}{err}", slot.slot, slot.state.word())
}

/// The line with a bar, where there is no error to show.
fn slot_bar(slot: &SlotState, wanted: u64) -> String {
    let line = slot_line(slot, wanted);
    if !slot.err.is_empty() {
        return line;
    }
    let step = STEPS.iter().position(|&state| state >= slot.state).unwrap_or(0);
    let filled = (BAR * step / (STEPS.len() - 1)).min(BAR);
    format!("{line:<18} [{:<BAR$}]", "=".repeat(filled.saturating_sub(1)) + ">")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_say_what_is_waited_for() {
        let check = |running, behind, expected: &str| {
            let judgement =
                Judgement { running, wanted: 3, slots: Vec::new(), behind, refused: None };
            assert_eq!(overall(&judgement), expected);
        };
        check(2, 3, "overall progress: 2 out of 3 tasks");
        check(3, 2, "overall progress: 3 out of 3 tasks, waiting for 2 nodes to hold them");
        check(3, 0, "overall progress: 3 out of 3 tasks");
        let slot = SlotState { slot: 1, state: TaskState::Pending, err: "no suitable node".into() };
        assert_eq!(slot_line(&slot, 3), "1/3: pending no suitable node");
        assert_eq!(slot_bar(&slot, 3), "1/3: pending no suitable node");
    }

    #[test]
    fn a_bar_fills_from_new_to_running() {
        let bar = |state| slot_bar(&SlotState { slot: 2, state, err: String::new() }, 3);
        assert_eq!(bar(TaskState::New), format!("2/3: new           [>{}]", " ".repeat(49)));
        assert_eq!(bar(TaskState::Running), format!("2/3: running       [{}>]", "=".repeat(49)));
        assert_eq!(bar(TaskState::Failed).len(), bar(TaskState::New).len());
    }
}
