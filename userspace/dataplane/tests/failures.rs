//! What a start that fails, or a bad moment, leaves in the kernel.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod common;

use aya::maps::{Array, MapData};
use common::{Host, array, held, load, names, needs_root, plan, task};
use shoal_datapath::abi::{Config, maps};
use shoal_dataplane::{Dataplane, Options, TcMode, XdpMode};
use shoal_routing::Lower;

/// A host whose uplink has no native XDP.
fn without_native_xdp() -> Host {
    let mut host = Host::alone();
    host.ns.sh("ip link add link eth0 name mv0 type macvlan; ip addr add 192.0.2.7/24 dev mv0; \
                ip link set mv0 up");
    host.options =
        Options { xdp: XdpMode::Off, ..Options::new(host.pin_dir(), [192, 0, 2, 7].into()) };
    host
}

#[test]
fn a_restart_that_fails_leaves_what_forwards() {
    if !needs_root() {
        return;
    }
    // By tcx, links are pinned; a clsact filter has nothing but its maps.
    for tc in [TcMode::Auto, TcMode::Clsact] {
        let mut host = without_native_xdp();
        host.options.tc = tc;
        host.ns.block_on(|| async {
            let plan = plan(1, 2, &[task(7, 1), task(8, 2)]);
            let mut first = load(&host.options).await;
            first.apply(&plan).await.unwrap();
            drop(first);
            let config =
                || -> Config { array::<Config>(host.pin_dir(), maps::CONFIG).get(&0, 0).unwrap() };
            let kernel = || {
                let filters = host.ns.sh("tc filter show dev mv0 ingress 2>/dev/null || true");
                (
                    names(&host.pin_dir().join("maps")),
                    names(&host.pin_dir().join("links")),
                    filters.matches("direct-action").count(),
                    host.ns.sh("ip -br link show shoal-vx | cut -d' ' -f1"),
                )
            };
            let before = (kernel(), config());

            let refused = Options { xdp: XdpMode::Native, ..host.options.clone() };
            let error = Dataplane::load(refused).await.err().expect("no XDP there").to_string();
            assert!(error.starts_with("the kernel cannot run XDP in this driver"), "{error}");
            assert_eq!((kernel(), config()), before);

            let again = load(&host.options).await;
            assert_eq!(again.read().unwrap(), held(&plan));
        });
    }
}

#[test]
fn maps_of_a_start_that_was_killed_among_them_are_not_taken_over() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async {
        drop(load(&host.options).await);
        // As another release would leave it that was killed after its first map.
        let pins = host.pin_dir().join("maps");
        std::fs::remove_dir_all(host.pin_dir().join("links")).unwrap();
        std::fs::remove_dir_all(&pins).unwrap();
        std::fs::create_dir(&pins).unwrap();
        let other: Array<MapData, u64> = Array::create(3, 0).unwrap();
        other.pin(pins.join(maps::BACKENDS)).unwrap();

        let mut dataplane = load(&host.options).await;
        let plan = plan(1, 2, &[task(8, 2)]);
        dataplane.apply(&plan).await.unwrap();
        assert_eq!(dataplane.read().unwrap(), held(&plan));
    });
}
