//! `NODES` and `NODE_NUMBERS`: each node's address with the next hop towards it, and the inverse.
//!
//! Addresses come from the plan, next hops from `neighbours`; an entry is written whole, from both.

use std::collections::{BTreeMap, BTreeSet, HashMap as StdHashMap};

use aya::maps::{Array, HashMap, MapData};
use shoal_datapath::abi::{Address, Mac, NODES_MAX, Node, maps};
use tracing::debug;

use crate::error::Error;
use crate::sys;
use crate::tables::{failed, fd, remove};

/// The way to a node, as far as this host's own links go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) next_hop: Mac,
    pub(crate) source: Mac,
    pub(crate) ifindex: u32,
    pub(crate) mtu: u32,
}

/// The two maps, and what they are made of.
pub(crate) struct Nodes {
    map: Array<MapData, Node>,
    numbers: HashMap<MapData, Address, u32>,
    wanted: BTreeMap<u16, Address>,
    hops: StdHashMap<Address, Hop>,
}

impl Nodes {
    /// Takes the maps over as they are: what the last process knew of next hops is right until the
    /// kernel says otherwise.
    pub(crate) fn open(
        map: Array<MapData, Node>,
        numbers: HashMap<MapData, Address, u32>,
    ) -> Result<Self, Error> {
        let mut nodes = Self { map, numbers, wanted: BTreeMap::new(), hops: StdHashMap::new() };
        nodes.hops = nodes.read_hops()?;
        nodes.read()?;
        Ok(nodes)
    }

    /// The addresses to find next hops for.
    pub(crate) fn addresses(&self) -> BTreeSet<Address> {
        self.wanted.values().copied().collect()
    }

    fn read_entries(&self) -> Result<Vec<(u16, Node)>, Error> {
        let io =
            |cause| Error::Map { map: maps::NODES, cause: aya::maps::MapError::IoError(cause) };
        let entries: Vec<Node> = sys::read_array(fd(&self.map), NODES_MAX).map_err(io)?;
        let used = |(_, node): &(u16, Node)| *node != Node::default();
        Ok((0..).zip(entries).filter(used).collect())
    }

    /// Addresses by number, as the kernel holds them.
    pub(crate) fn read(&mut self) -> Result<BTreeMap<u16, Address>, Error> {
        let entries = self.read_entries()?.into_iter();
        self.wanted = entries.map(|(number, node)| (number, node.address)).collect();
        Ok(self.wanted.clone())
    }

    fn read_hops(&self) -> Result<StdHashMap<Address, Hop>, Error> {
        let known = |(_, node): (u16, Node)| {
            let Node { address, next_hop, source, ifindex, mtu } = node;
            (ifindex != 0).then_some((address, Hop { next_hop, source, ifindex, mtu }))
        };
        Ok(self.read_entries()?.into_iter().filter_map(known).collect())
    }

    /// Makes `NODE_NUMBERS` the inverse of `NODES`.
    pub(crate) fn repair_numbers(&mut self) -> Result<(), Error> {
        let right: StdHashMap<Address, u32> =
            self.wanted.iter().map(|(number, address)| (*address, u32::from(*number))).collect();
        let held: StdHashMap<Address, u32> = self.numbers.iter().filter_map(Result::ok).collect();
        for (address, number) in &right {
            if held.get(address) != Some(number) {
                self.put_number(*address, *number)?;
            }
        }
        for address in held.keys().filter(|address| !right.contains_key(*address)) {
            remove(&mut self.numbers, address, maps::NODE_NUMBERS)?;
        }
        Ok(())
    }

    fn put_number(&mut self, address: Address, number: u32) -> Result<(), Error> {
        self.numbers.insert(address, number, 0).map_err(failed(maps::NODE_NUMBERS))
    }

    pub(crate) fn put(&mut self, number: u16, address: Address) -> Result<(), Error> {
        let before = self.wanted.insert(number, address);
        self.write(number, address)?;
        self.put_number(address, number.into())?;
        self.forget_number(before.filter(|before| *before != address), number)
    }

    pub(crate) fn remove(&mut self, number: u16) -> Result<(), Error> {
        let before = self.wanted.remove(&number);
        self.map.set(number.into(), Node::default(), 0).map_err(failed(maps::NODES))?;
        self.forget_number(before, number)
    }

    /// Removes an address that this number had, unless another node has it now.
    fn forget_number(&mut self, address: Option<Address>, number: u16) -> Result<(), Error> {
        match address {
            Some(address) if self.numbers.get(&address, 0).ok() == Some(number.into()) => {
                remove(&mut self.numbers, &address, maps::NODE_NUMBERS)
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, number: u16, address: Address) -> Result<(), Error> {
        let Hop { next_hop, source, ifindex, mtu } =
            self.hops.get(&address).copied().unwrap_or_default();
        let node = Node { address, next_hop, source, ifindex, mtu };
        self.map.set(number.into(), node, 0).map_err(failed(maps::NODES))
    }

    /// Takes what was found out and writes the entries that change by it.
    pub(crate) fn learn(&mut self, hops: StdHashMap<Address, Hop>) -> Result<(), Error> {
        let wanted = self.wanted.clone();
        let before = std::mem::replace(&mut self.hops, hops);
        for (number, address) in wanted {
            if before.get(&address) != self.hops.get(&address) {
                debug!(node.number = number, hop = ?self.hops.get(&address), "next hop");
                self.write(number, address)?;
            }
        }
        Ok(())
    }
}
