//! Which managers there are, and which to try next.
//!
//! The addresses given at the start are for the first session; from then on the managers say who
//! they are, and that is kept on disk. A leader that a follower named is tried first, once.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::disk;

/// The known managers.
#[derive(Debug)]
pub(crate) struct Managers {
    file: PathBuf,
    /// Given by the operator; tried after all others, should those have moved.
    given: Vec<String>,
    /// As the managers said last.
    known: Vec<String>,
    turn: usize,
    /// Named as the leader by another.
    leader: Option<String>,
}

impl Managers {
    /// What the last daemon knew, and what the operator gives.
    pub(crate) fn open(file: PathBuf, given: Vec<String>) -> io::Result<Self> {
        let known = match fs::read(&file) {
            // A damaged file is worth less than the addresses that were given.
            Ok(json) => serde_json::from_slice(&json).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { file, given, known, turn: 0, leader: None })
    }

    /// The managers told who they are.
    pub(crate) fn update(&mut self, addrs: &[String]) {
        if addrs.is_empty() || addrs == self.known {
            return;
        }
        addrs.clone_into(&mut self.known);
        let json = serde_json::to_vec(&self.known).expect("a list of strings has a JSON form");
        if let Err(error) = disk::replace(&self.file, &json) {
            tracing::warn!(file = %self.file.display(), %error, "cannot keep the managers");
        }
    }

    /// A follower named the leader.
    pub(crate) fn prefer(&mut self, leader: String) {
        self.leader = Some(leader);
    }

    /// The address to try now, another than `dead` if there is one; `None` when there is none at
    /// all.
    pub(crate) fn next(&mut self, dead: Option<&str>) -> Option<String> {
        if let Some(leader) = self.leader.take() {
            return Some(leader);
        }
        let new = self.given.iter().filter(|addr| !self.known.contains(addr));
        let all: Vec<&String> = self.known.iter().chain(new).collect();
        let mut addr = None;
        for _ in 0..2 {
            addr = Some(*all.get(self.turn % all.len().max(1))?);
            self.turn = self.turn.wrapping_add(1);
            if addr.map(String::as_str) != dead {
                break;
            }
        }
        addr.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(addrs: &[&str]) -> Vec<String> {
        addrs.iter().map(|&addr| addr.to_owned()).collect()
    }

    #[test]
    fn what_the_managers_said_survives_a_restart_and_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("managers.json");
        let mut managers = Managers::open(file.clone(), strings(&["a:1"])).unwrap();
        assert_eq!(managers.next(None).as_deref(), Some("a:1"));
        assert_eq!(managers.next(Some("a:1")).as_deref(), Some("a:1"));
        managers.update(&strings(&["b:1", "c:1"]));
        let mut managers = Managers::open(file, strings(&["a:1"])).unwrap();
        let turns: Vec<_> = (0..4).filter_map(|_| managers.next(None)).collect();
        assert_eq!(turns, ["b:1", "c:1", "a:1", "b:1"]);
        managers.prefer("d:1".into());
        assert_eq!(managers.next(None).as_deref(), Some("d:1"));
        assert_eq!(managers.next(Some("c:1")).as_deref(), Some("a:1"));
    }

    #[test]
    fn without_any_address_there_is_none_to_try() {
        let dir = tempfile::tempdir().unwrap();
        let mut managers = Managers::open(dir.path().join("managers.json"), vec![]).unwrap();
        assert_eq!(managers.next(None), None);
    }
}
