//! Histories of what clients did to each service name, and whether they are linearizable.
//!
//! A name is a register that holds the mark of its newest spec, or nothing. The search for an order
//! is exponential, so a name is given up after some operations, or a few whose outcome is unknown:
//! those may have happened at any later time, or never.
//!
//! Source: Herlihy and Wing, "Linearizability", TOPLAS 1990; checked with stateright's
//! `LinearizabilityTester`.

use std::collections::{BTreeMap, BTreeSet};

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// Operations on one name.
const MOST: usize = 14;
/// Operations on one name whose outcome is unknown.
const MOST_UNKNOWN: usize = 2;

/// One service name.
#[derive(Clone, Debug, Default)]
pub(super) struct Register(Option<u64>);

/// What a client asks for. Marks are unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Create(u64),
    /// From the mark that the client read to another one.
    Update(u64, u64),
    Remove,
    Read,
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ret {
    Done,
    Exists,
    Missing,
    /// An update of what is not there any more, in this form or at all.
    Stale,
    Mark(Option<u64>),
}

impl SequentialSpec for Register {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match (op, self.0) {
            (Op::Create(_), Some(_)) => Ret::Exists,
            (Op::Create(mark), None) => {
                self.0 = Some(*mark);
                Ret::Done
            }
            (Op::Update(from, to), Some(is)) if is == *from => {
                self.0 = Some(*to);
                Ret::Done
            }
            (Op::Update(..), _) => Ret::Stale,
            (Op::Remove, None) => Ret::Missing,
            (Op::Remove, Some(_)) => {
                self.0 = None;
                Ret::Done
            }
            (Op::Read, is) => Ret::Mark(is),
        }
    }
}

/// All names.
#[derive(Default)]
pub(super) struct Histories {
    names: BTreeMap<String, History>,
    /// A client whose operation may go on unseen is another one from then on.
    generations: BTreeMap<u64, u64>,
}

#[derive(Default)]
struct History {
    calls: Vec<(u64, Call)>,
    operations: usize,
    unknown: usize,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Begins(usize, Op),
    Ends(Ret),
    /// Nothing came of it, and nothing will.
    Void(usize),
}

/// How an operation ended, as the client knows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    Answer(Ret),
    /// It had no effect and never will.
    Nothing,
    /// It may have happened, or happen yet.
    Unknown,
}

/// An operation that has begun.
pub(super) struct Begun {
    name: String,
    client: u64,
    thread: u64,
    number: usize,
}

impl Histories {
    /// Whether a name may take one more operation.
    pub(super) fn takes_more(&self, name: &str) -> bool {
        let takes = |history: &History| history.operations < MOST && history.unknown < MOST_UNKNOWN;
        self.names.get(name).is_none_or(takes)
    }

    pub(super) fn begin(&mut self, name: &str, client: u64, op: Op) -> Begun {
        let generation = self.generations.get(&client).copied().unwrap_or(0);
        let thread = client * 1_000 + generation;
        let history = self.names.entry(name.to_owned()).or_default();
        let number = history.operations;
        history.operations += 1;
        history.calls.push((thread, Call::Begins(number, op)));
        Begun { name: name.to_owned(), client, thread, number }
    }

    pub(super) fn end(&mut self, begun: &Begun, told: Told) {
        let history = self.names.get_mut(&begun.name).expect("it has begun");
        match told {
            Told::Answer(ret) => history.calls.push((begun.thread, Call::Ends(ret))),
            Told::Nothing => history.calls.push((begun.thread, Call::Void(begun.number))),
            Told::Unknown => {
                history.unknown += 1;
                *self.generations.entry(begun.client).or_default() += 1;
            }
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// What has no order.
    pub(super) fn broken(&self) -> Vec<String> {
        let broken = self.names.iter().filter(|(_, history)| !history.is_linearizable());
        let broken = broken.map(|(name, history)| {
            let calls: Vec<String> =
                history.calls.iter().map(|(who, call)| format!("{who}: {call:?}")).collect();
            format!("linearizability: service {name}: {}", calls.join("; "))
        });
        broken.collect()
    }
}

impl History {
    fn is_linearizable(&self) -> bool {
        let void = |call: &(u64, Call)| match call.1 {
            Call::Void(number) => Some(number),
            _ => None,
        };
        let void: BTreeSet<usize> = self.calls.iter().filter_map(void).collect();
        let mut tester = LinearizabilityTester::new(Register::default());
        for (thread, call) in &self.calls {
            let known = match call {
                Call::Begins(number, op) if !void.contains(number) => {
                    tester.on_invoke(*thread, *op).map(drop)
                }
                Call::Ends(ret) => tester.on_return(*thread, *ret).map(drop),
                Call::Begins(..) | Call::Void(_) => Ok(()),
            };
            known.expect("a client does one thing at a time");
        }
        tester.is_consistent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(histories: &mut Histories, op: Op, told: Told) {
        let begun = histories.begin("a", 1, op);
        histories.end(&begun, told);
    }

    #[test]
    fn an_update_of_unknown_outcome_may_come_later_but_does_not_go_away_again() {
        let mut histories = Histories::default();
        let is = |mark| Told::Answer(Ret::Mark(Some(mark)));
        run(&mut histories, Op::Create(1), Told::Answer(Ret::Done));
        run(&mut histories, Op::Update(1, 2), Told::Answer(Ret::Done));
        run(&mut histories, Op::Update(2, 3), Told::Unknown);
        run(&mut histories, Op::Read, is(2));
        assert!(histories.broken().is_empty());
        run(&mut histories, Op::Read, is(3));
        assert!(histories.broken().is_empty());
        run(&mut histories, Op::Read, is(2));
        assert_eq!(histories.broken().len(), 1);
    }

    #[test]
    fn what_was_not_taken_must_not_show() {
        let mut histories = Histories::default();
        run(&mut histories, Op::Create(1), Told::Nothing);
        assert!(histories.broken().is_empty());
        run(&mut histories, Op::Read, Told::Answer(Ret::Mark(Some(1))));
        assert_eq!(histories.broken().len(), 1);
    }
}
