//! Which of a host's addresses serve published ports, as the host's interfaces change.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use aya::maps::{HashMap, MapData};
use common::{Host, load, needs_root, pinned, plan, until};
use shoal_datapath::abi::{ADDRESSES_MAX, Address, maps};
use shoal_routing::Lower;

fn serving(host: &Host) -> BTreeSet<IpAddr> {
    let map: HashMap<MapData, Address, u32> =
        pinned(host.pin_dir(), maps::ADDRESSES).try_into().unwrap();
    map.keys().map(|address| Ipv6Addr::from(address.unwrap()).to_canonical()).collect()
}

fn addresses<const N: usize>(these: [[u8; 4]; N]) -> BTreeSet<IpAddr> {
    these.into_iter().map(IpAddr::from).collect()
}

#[test]
fn an_address_serves_as_soon_as_the_uplink_has_it() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        dataplane.apply(&plan(1, 1, &[])).await.unwrap();
        let becomes = async |wanted: BTreeSet<IpAddr>| {
            until(|| match serving(&host) {
                now if now == wanted => Ok(()),
                now => Err(now),
            })
            .await;
        };
        let own = [10, 88, 0, 1];
        becomes(addresses([own])).await;
        // Nobody asks for a repair here: the kernel's reports are enough.
        host.ns.sh("ip addr add 192.0.2.9/32 dev eth0; ip addr add 192.0.2.8/32 dev lo");
        becomes(addresses([own, [192, 0, 2, 9]])).await;
        host.ns.sh("ip addr del 192.0.2.9/32 dev eth0; ip addr add 10.88.0.50/24 dev eth0");
        becomes(addresses([own, [10, 88, 0, 50]])).await;
    });
}

#[test]
fn of_too_many_addresses_the_data_path_s_own_always_serves() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    let batch = |verb: &str, net: u8| {
        let lines: String =
            (1..=200).map(|last| format!("addr {verb} 192.0.{net}.{last}/32 dev eth0\n")).collect();
        host.ns.sh(&format!("ip -batch - <<'END'\n{lines}END"));
    };
    batch("add", 2);
    batch("add", 3);
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        let own = IpAddr::from([10, 88, 0, 1]);
        let before = serving(&host);
        assert_eq!(before.len(), ADDRESSES_MAX as usize);
        assert!(before.contains(&own) && before.contains(&[192, 0, 2, 1].into()));
        // A full table still changes: who goes makes room for who comes.
        batch("del", 2);
        until(|| match serving(&host) {
            now if now.len() == 201 && now.contains(&own) => Ok(()),
            now => Err(now.len()),
        })
        .await;
        assert!(serving(&host).contains(&[192, 0, 3, 200].into()));
        assert_eq!(dataplane.resync().await.unwrap(), 0);
    });
}
