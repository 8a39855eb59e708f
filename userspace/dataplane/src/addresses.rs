//! `ADDRESSES`: the node's own addresses that serve frontends.
//!
//! The data-path address always, and every global address of the uplink, as it comes and goes: a
//! floating address serves from the moment the kernel reports it. One that comes is put before one
//! that goes is removed.

use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use shoal_datapath::abi::{ADDRESSES_MAX, Address, maps};
use shoal_routing::plan::address_bytes;
use tracing::{info, warn};

use crate::error::Error;
use crate::net::Net;
use crate::tables::{failed, remove};

/// The map, and what belongs in it.
pub(crate) struct Addresses {
    map: HashMap<MapData, Address, u32>,
    data_path: IpAddr,
    /// Index of the interface whose addresses serve.
    uplink: u32,
    /// How many of them have no room, as it was said last.
    left_out: usize,
}

impl Addresses {
    pub(crate) fn new(map: HashMap<MapData, Address, u32>, data_path: IpAddr, uplink: u32) -> Self {
        Self { map, data_path, uplink, left_out: 0 }
    }

    /// From now on, another interface is the uplink.
    pub(crate) fn serve(&mut self, uplink: u32) {
        self.uplink = uplink;
    }

    /// Makes the map equal to what the interface has now.
    pub(crate) async fn refresh(&mut self, net: &Net) -> Result<(), Error> {
        let mut wanted = vec![address_bytes(self.data_path)];
        for (index, address) in net.addresses().await? {
            let address = address_bytes(address);
            if index == self.uplink && !wanted.contains(&address) {
                wanted.push(address);
            }
        }
        let left_out = wanted.len().saturating_sub(ADDRESSES_MAX as usize);
        if left_out > self.left_out {
            warn!(left_out, most = ADDRESSES_MAX, "the uplink has more addresses than can serve");
        }
        self.left_out = left_out;
        wanted.truncate(ADDRESSES_MAX as usize);
        self.put(&wanted)
    }

    /// At most [`ADDRESSES_MAX`] of them.
    fn put(&mut self, wanted: &[Address]) -> Result<(), Error> {
        let held: Vec<Address> = self.map.keys().filter_map(Result::ok).collect();
        let new: Vec<&Address> = wanted.iter().filter(|address| !held.contains(address)).collect();
        let mut stale = held.iter().filter(|address| !wanted.contains(address));
        // As many as the new ones need room go first; commonly none.
        let crowd = (held.len() + new.len()).saturating_sub(ADDRESSES_MAX as usize);
        for address in stale.by_ref().take(crowd) {
            self.drop_one(address)?;
        }
        for address in new {
            info!(address = %ip(address), "serves published ports");
            self.map.insert(address, 1, 0).map_err(failed(maps::ADDRESSES))?;
        }
        for address in stale {
            self.drop_one(address)?;
        }
        Ok(())
    }

    fn drop_one(&mut self, address: &Address) -> Result<(), Error> {
        info!(address = %ip(address), "serves published ports no more");
        remove(&mut self.map, address, maps::ADDRESSES)
    }
}

fn ip(address: &Address) -> IpAddr {
    std::net::Ipv6Addr::from(*address).to_canonical()
}
