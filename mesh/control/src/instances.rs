//! Tells a node that was restarted from one that runs twice, on copies of one state directory.
//!
//! Each start of a daemon has its own instance. A new one takes the place of the one before, as
//! after a restart. But if that one asks again, it is still alive: both run, the later is the copy,
//! and it is refused while the earlier one's session lives (swarm.md N8).

use std::collections::BTreeMap;

/// Instances that are remembered per node: a restarted daemon's old ones never ask again.
const REMEMBERED: usize = 8;

/// What is known of all nodes' daemons.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    nodes: BTreeMap<String, Starts>,
}

/// The starts of one node's daemon, as far as this leader knows.
#[derive(Debug, Default)]
struct Starts {
    current: String,
    /// In the order in which they first asked.
    known: Vec<String>,
}

impl Starts {
    fn rank(&self, instance: &str) -> Option<usize> {
        self.known.iter().position(|known| known == instance)
    }
}

impl Instances {
    /// Whether an instance may open its node's session, which is the current one then.
    ///
    /// * `live` - whether the node has a session now.
    pub(crate) fn admits(&mut self, node_id: &str, instance: &str, live: bool) -> bool {
        if instance.is_empty() {
            return true;
        }
        let starts = self.nodes.entry(node_id.to_owned()).or_default();
        match starts.rank(instance) {
            Some(rank) if live && Some(rank) > starts.rank(&starts.current) => return false,
            Some(_) => {}
            None => {
                if starts.known.len() == REMEMBERED {
                    // The one that holds the session stays: forgotten, it would come back as the
                    // latest, and be taken for the copy of a copy that is started again and again.
                    let others = |known: &String| *known != starts.current;
                    let oldest = starts.known.iter().position(others).unwrap_or(0);
                    starts.known.remove(oldest);
                }
                starts.known.push(instance.to_owned());
            }
        }
        instance.clone_into(&mut starts.current);
        true
    }

    /// Whether the instance is a copy of the one that holds the node's session.
    pub(crate) fn is_copy(&self, node_id: &str, instance: &str) -> bool {
        self.nodes.get(node_id).is_some_and(|starts| {
            let current = starts.rank(&starts.current);
            starts.rank(instance).is_some_and(|rank| Some(rank) > current)
        })
    }

    /// The node is gone.
    pub(crate) fn forget(&mut self, node_id: &str) {
        self.nodes.remove(node_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each instance asks in its turn, with a live session of the one before.
    fn check(asks: &str, expected: &str) {
        let mut instances = Instances::default();
        let admitted: String = asks
            .chars()
            .filter(|instance| instances.admits("n1", &instance.to_string(), true))
            .collect();
        assert_eq!(admitted, expected, "{asks}");
    }

    #[test]
    fn a_restarted_daemon_takes_its_own_place() {
        check("AABBC", "AABBC");
    }

    #[test]
    fn of_two_that_live_the_later_is_refused() {
        check("ABABAB", "ABAA");
        check("ABCACBA", "ABCAA");
    }

    #[test]
    fn a_copy_that_is_started_again_and_again_does_not_become_the_first() {
        check("ABACADAEAFAGAHAIAJAKAJK", "ABACADAEAFAGAHAIAJAKA");
    }

    #[test]
    fn a_copy_may_stand_in_once_the_first_one_is_gone() {
        let mut instances = Instances::default();
        for instance in ["A", "B", "A"] {
            assert!(instances.admits("n1", instance, true));
        }
        assert!(instances.is_copy("n1", "B"));
        assert!(!instances.admits("n1", "B", true));
        assert!(instances.admits("n1", "B", false));
    }

    #[test]
    fn daemons_that_do_not_tell_are_let_in() {
        let mut instances = Instances::default();
        assert!(instances.admits("n1", "", true) && instances.admits("n1", "", true));
    }
}
