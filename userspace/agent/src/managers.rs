//! Which managers there are, and which to try next.
//!
//! The managers say who they are; that is kept on disk, and beside it the names by which the
//! operator knows them. Names are looked up anew at each try: where all managers have moved, they
//! lead to the new addresses. A leader that a follower named is tried first, once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;

/// The known managers.
#[derive(Debug)]
pub(crate) struct Managers {
    file: PathBuf,
    kept: Kept,
    turn: usize,
    /// Named as the leader by another.
    leader: Option<String>,
}

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// By the operator; tried after all others, should those have moved.
    given: Vec<String>,
    /// As the managers said last.
    known: Vec<String>,
}

/// What an earlier release wrote is a list of the known ones.
#[derive(Deserialize)]
#[serde(untagged)]
enum OnDisk {
    Kept(Kept),
    Known(Vec<String>),
}

impl Managers {
    /// What the last daemon knew, and what the operator gives; without the latter, what he gave
    /// last.
    pub(crate) fn open(file: PathBuf, given: Vec<String>) -> io::Result<Self> {
        let mut kept = match fs::read(&file) {
            // A damaged file is worth less than the addresses that were given.
            Ok(json) => match serde_json::from_slice(&json) {
                Ok(OnDisk::Kept(kept)) => kept,
                Ok(OnDisk::Known(known)) => Kept { known, ..Kept::default() },
                Err(_) => Kept::default(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error),
        };
        if !given.is_empty() && given != kept.given {
            kept.given = given;
            write(&file, &kept)?;
        }
        Ok(Self { file, kept, turn: 0, leader: None })
    }

    /// The managers told who they are.
    pub(crate) fn update(&mut self, addrs: &[String]) {
        if addrs.is_empty() || addrs == self.kept.known {
            return;
        }
        addrs.clone_into(&mut self.kept.known);
        if let Err(error) = write(&self.file, &self.kept) {
            tracing::warn!(file = %self.file.display(), %error, "cannot keep the managers");
        }
    }

    /// A follower named the leader.
    pub(crate) fn prefer(&mut self, leader: String) {
        self.leader = Some(leader);
    }

    /// Every address, those that the managers said first.
    pub(crate) fn all(&self) -> Vec<String> {
        self.each().cloned().collect()
    }

    /// The address to try now, another than `dead` if there is one; `None` when there is none at
    /// all.
    pub(crate) fn next(&mut self, dead: Option<&str>) -> Option<String> {
        if let Some(leader) = self.leader.take() {
            return Some(leader);
        }
        let all = self.all();
        let mut addr = None;
        for _ in 0..2 {
            addr = Some(all.get(self.turn % all.len().max(1))?);
            self.turn = self.turn.wrapping_add(1);
            if addr.map(String::as_str) != dead {
                break;
            }
        }
        addr.cloned()
    }

    fn each(&self) -> impl Iterator<Item = &String> {
        let new = self.kept.given.iter().filter(|addr| !self.kept.known.contains(addr));
        self.kept.known.iter().chain(new)
    }
}

fn write(file: &Path, kept: &Kept) -> io::Result<()> {
    let json = serde_json::to_vec_pretty(kept).expect("lists of strings have a JSON form");
    disk::replace(file, &json)
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
    fn names_that_were_given_once_are_kept_beside_what_the_managers_say() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("managers.json");
        let mut managers = Managers::open(file.clone(), strings(&["name:1", "b:1"])).unwrap();
        managers.update(&strings(&["b:1"]));
        let managers = Managers::open(file.clone(), vec![]).unwrap();
        assert_eq!(managers.all(), ["b:1", "name:1"]);
        let managers = Managers::open(file.clone(), strings(&["other:1"])).unwrap();
        assert_eq!(managers.all(), ["b:1", "other:1"]);
        let managers = Managers::open(file.clone(), vec![]).unwrap();
        assert_eq!(managers.all(), ["b:1", "other:1"]);

        let check = |content: &str, expected: &[&str]| {
            fs::write(&file, content).unwrap();
            assert_eq!(Managers::open(file.clone(), vec![]).unwrap().all(), expected);
        };
        check(r#"["a:1", "b:1"]"#, &["a:1", "b:1"]);
        check("{", &[]);
    }

    #[test]
    fn without_any_address_there_is_none_to_try() {
        let dir = tempfile::tempdir().unwrap();
        let mut managers = Managers::open(dir.path().join("managers.json"), vec![]).unwrap();
        assert_eq!(managers.next(None), None);
    }
}
