//! Where the other managers are: what the membership says, corrected by what they announced.
//!
//! A manager whose address changed says so itself, see [`crate::announce`]: without a leader nobody
//! could write it into the membership. A later start of a manager outranks an earlier one by its
//! generation, and a later membership outranks what was announced over the one before it. What a
//! manager says of itself outranks what others say of it: nobody can hide another for good.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use shoal_api::ManagerAddress;

/// Announcements that are kept: more than a cluster has managers, and no more than a table's worth
/// whatever is announced.
const KEPT: usize = 256;

/// The addresses that this manager knows.
pub struct AddressBook {
    own: ManagerAddress,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    members: BTreeMap<u64, String>,
    announced: BTreeMap<u64, Announced>,
}

struct Announced {
    address: ManagerAddress,
    /// What the membership said when it was announced.
    over: Option<String>,
    /// By itself, not by another manager.
    first_hand: bool,
}

impl AddressBook {
    /// A book that knows only its owner.
    pub fn new(own: ManagerAddress) -> Self {
        Self { own, pages: Mutex::default() }
    }

    /// The owner's address, as it announces it.
    pub fn own(&self) -> &ManagerAddress {
        &self.own
    }

    /// The membership as it is now.
    pub fn set_members(&self, members: BTreeMap<u64, String>) {
        let mut pages = self.pages.lock();
        if pages.members == members {
            return;
        }
        pages.announced.retain(|id, announced| {
            let now = members.get(id);
            let changed = announced.over.is_some() && now != announced.over.as_ref();
            let stands = !changed || now == Some(&announced.address.addr);
            announced.over = now.cloned();
            stands
        });
        pages.members = members;
    }

    /// Takes in what a manager says of itself; `false` when it is no news. A node has one Raft id.
    pub fn take(&self, address: ManagerAddress) -> bool {
        let node_id = &address.node_id;
        let is_another = |id: &u64, known: &Announced| {
            *id == address.raft_id || node_id.is_empty() || known.address.node_id != *node_id
        };
        self.pages.lock().announced.retain(|id, known| is_another(id, known));
        self.note(address, true)
    }

    /// Takes in what a manager says of another one; `false` when it is no news.
    pub fn hear(&self, address: ManagerAddress) -> bool {
        self.note(address, false)
    }

    fn note(&self, address: ManagerAddress, first_hand: bool) -> bool {
        let mut pages = self.pages.lock();
        let known = pages.announced.get(&address.raft_id);
        let newer = known.is_none_or(|known| {
            known.address.generation < address.generation || (first_hand && !known.first_hand)
        });
        let full = known.is_none() && pages.announced.len() >= KEPT;
        if !newer || full || address.raft_id == self.own.raft_id || address.addr.is_empty() {
            return false;
        }
        let over = pages.members.get(&address.raft_id).cloned();
        pages.announced.insert(address.raft_id, Announced { address, over, first_hand });
        true
    }

    /// `host:port` of a manager.
    pub fn addr(&self, raft_id: u64) -> Option<String> {
        if raft_id == self.own.raft_id {
            return Some(self.own.addr.clone());
        }
        let pages = self.pages.lock();
        let announced = pages.announced.get(&raft_id).map(|known| &known.address.addr);
        announced.or_else(|| pages.members.get(&raft_id)).cloned()
    }

    /// All managers, the owner first; one that was not announced has generation 0.
    pub fn all(&self) -> Vec<ManagerAddress> {
        let pages = self.pages.lock();
        let announced = pages.announced.values().map(|known| known.address.clone());
        let silent = pages.members.iter().filter(|(id, _)| !pages.announced.contains_key(id));
        let silent = silent.filter(|(id, _)| **id != self.own.raft_id).map(|(id, addr)| {
            ManagerAddress { raft_id: *id, addr: addr.clone(), ..ManagerAddress::default() }
        });
        std::iter::once(self.own.clone()).chain(announced).chain(silent).collect()
    }

    /// Members that are elsewhere than the membership says, maybe the owner among them.
    pub fn moved(&self) -> Vec<ManagerAddress> {
        let pages = self.pages.lock();
        let announced = pages.announced.values().map(|known| &known.address);
        let all = std::iter::once(&self.own).chain(announced);
        let elsewhere = all.filter(|address| {
            let member = pages.members.get(&address.raft_id);
            member.is_some_and(|member| *member != address.addr)
        });
        elsewhere.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(raft_id: u64, addr: &str, generation: u64) -> ManagerAddress {
        ManagerAddress { raft_id, node_id: format!("n{raft_id}"), addr: addr.into(), generation }
    }

    fn members(of: &[(u64, &str)]) -> BTreeMap<u64, String> {
        of.iter().map(|(id, addr)| (*id, (*addr).to_owned())).collect()
    }

    fn book() -> AddressBook {
        let book = AddressBook::new(address(1, "a:1", 9));
        book.set_members(members(&[(1, "a:1"), (2, "b:1"), (3, "c:1")]));
        book
    }

    #[test]
    fn an_announcement_outranks_the_membership_and_an_older_one() {
        let book = book();
        assert_eq!(book.addr(2).as_deref(), Some("b:1"));
        assert!(book.take(address(2, "b:2", 5)));
        assert_eq!(book.addr(2).as_deref(), Some("b:2"));
        assert!(!book.take(address(2, "b:3", 4)), "of an earlier start");
        assert!(!book.take(address(2, "b:2", 5)), "no news");
        assert_eq!(book.addr(2).as_deref(), Some("b:2"));
        assert_eq!(book.moved(), [address(2, "b:2", 5)]);
        assert!(book.take(address(2, "b:4", 6)));
        assert_eq!(book.addr(2).as_deref(), Some("b:4"));
    }

    #[test]
    fn a_later_membership_outranks_what_was_announced_before_it() {
        let book = book();
        book.take(address(2, "b:2", 5));
        book.set_members(members(&[(1, "a:1"), (2, "b:1"), (3, "c:1"), (4, "d:1")]));
        assert_eq!(book.addr(2).as_deref(), Some("b:2"), "nothing new about it");
        book.set_members(members(&[(1, "a:1"), (2, "b:2"), (3, "c:1")]));
        assert_eq!((book.addr(2).as_deref(), book.moved()), (Some("b:2"), vec![]));
        book.set_members(members(&[(1, "a:1"), (2, "b:9"), (3, "c:1")]));
        assert_eq!(book.addr(2).as_deref(), Some("b:9"), "it moved again, and told others");
    }

    #[test]
    fn a_manager_that_the_membership_does_not_know_yet_is_kept() {
        let book = book();
        assert!(book.take(address(4, "d:2", 5)));
        assert!(book.moved().is_empty());
        book.set_members(members(&[(1, "a:1"), (4, "d:1")]));
        assert_eq!(book.addr(4).as_deref(), Some("d:2"), "the log that comes may be old");
        assert_eq!(book.moved(), [address(4, "d:2", 5)]);
    }

    #[test]
    fn nobody_else_says_where_the_owner_is() {
        let book = book();
        assert!(!book.take(address(1, "z:1", 99)));
        assert_eq!(book.addr(1).as_deref(), Some("a:1"));
        assert_eq!(book.all()[0], address(1, "a:1", 9));
        assert_eq!(book.all().len(), 3);
        book.set_members(members(&[(1, "old:1")]));
        assert_eq!(book.moved(), [address(1, "a:1", 9)], "it moved itself");
    }

    #[test]
    fn a_manager_that_was_hidden_by_another_comes_back_by_its_own_word() {
        let book = book();
        assert!(book.take(address(2, "b:2", 5)));
        assert!(book.hear(address(2, "nowhere:1", u64::MAX)), "others may be the first to know");
        assert!(book.take(address(2, "b:2", 5)));
        assert_eq!(book.addr(2).as_deref(), Some("b:2"));
        assert!(!book.hear(address(2, "b:1", 4)));
    }

    #[test]
    fn a_node_that_announces_many_ids_has_the_last_one() {
        let book = book();
        for id in 10..2_000 {
            book.take(ManagerAddress { node_id: "forger".into(), ..address(id, "x:1", 1) });
        }
        assert_eq!(book.all().len(), 3 + 1);
    }

    #[test]
    fn a_flood_of_announcements_is_bounded() {
        let book = book();
        for id in 10..2_000 {
            book.take(address(id, "x:1", 1));
        }
        assert!(book.all().len() <= KEPT + 3);
    }
}
