//! One host: what is in the kernel after each call.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod common;

use aya::maps::{Array, HashMap, MapData};
use common::{
    Host, Ns, PORT, Task, array, held, load, names, needs_root, pinned, plan, programs_on, task,
    until,
};
use shoal_api::{BackendState, Protocol};
use shoal_datapath::abi::{
    Address, Backend, Config, Endpoint, EndpointKey, Flow, FlowKey, Frontend, Node, maps,
};
use shoal_dataplane::{Options, TcMode, XdpMode, unload};
use shoal_routing::plan::frontend_key;
use shoal_routing::{Lower, Plan};

#[test]
fn a_plan_is_read_back_as_it_was_written() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        assert_eq!(dataplane.read().unwrap(), Plan::default());
        let first = plan(1, 3, &[task(7, 1), task(8, 2)]);
        let steps = dataplane.apply(&first).await.unwrap();
        // Own number, 3 nodes, 2 backends, 1 ring, 2 frontends.
        assert_eq!(steps, 9);
        assert_eq!(dataplane.read().unwrap(), held(&first));
        let draining = Task { state: BackendState::Draining, ..task(8, 2) };
        let second = plan(1, 2, &[task(7, 1), draining, task(9, 2)]);
        dataplane.apply(&second).await.unwrap();
        assert_eq!(dataplane.read().unwrap(), held(&second));
        assert_eq!(dataplane.apply(&second).await.unwrap(), 0);
        let none = plan(1, 1, &[]);
        dataplane.apply(&none).await.unwrap();
        assert_eq!(dataplane.read().unwrap(), held(&none));
    });
}

#[test]
fn the_programs_know_their_node_and_its_addresses() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.sh("ip addr add 192.0.2.9/32 dev eth0");
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        dataplane.apply(&plan(1, 2, &[])).await.unwrap();
        let config: Config = array(host.pin_dir(), maps::CONFIG).get(&0, 0).unwrap();
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        assert_eq!((config.uplink, config.vxlan), (index("eth0"), index("shoal-vx")));
        assert_eq!((config.node, config.vxlan_port), (1, 4789));
        let addresses: HashMap<_, Address, u32> =
            pinned(host.pin_dir(), maps::ADDRESSES).try_into().unwrap();
        let mut held: Vec<u8> = addresses.keys().map(|address| address.unwrap()[15]).collect();
        held.sort_unstable();
        assert_eq!(held, [1, 9]);
        let numbers: HashMap<_, Address, u32> =
            pinned(host.pin_dir(), maps::NODE_NUMBERS).try_into().unwrap();
        let mut held: Vec<(u8, u32)> =
            numbers.iter().map(Result::unwrap).map(|(address, n)| (address[15], n)).collect();
        held.sort_unstable();
        assert_eq!(held, [(1, 1), (2, 2)]);
    });
}

#[test]
fn a_restart_changes_nothing_that_was_right() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    let flow = FlowKey { client: [1; 16], task: [2; 16], protocol: 6, ..FlowKey::default() };
    let flows = || -> HashMap<MapData, FlowKey, Flow> {
        // aya has one type for a table and for one that forgets the oldest.
        pinned(host.pin_dir(), maps::FLOWS).try_into().unwrap()
    };
    let plan = plan(1, 2, &[task(7, 1), task(8, 2)]);
    host.ns.block_on(|| async {
        let mut first = load(&host.options).await;
        first.apply(&plan).await.unwrap();
        flows().insert(flow, Flow { frontend_port: 1, ..Flow::default() }, 0).unwrap();
        let links = names(&host.pin_dir().join("links"));
        let before = programs_on("eth0");
        assert_eq!(before.len(), 1);
        drop(first);
        assert_eq!(programs_on("eth0"), before, "a program stays when its process goes");

        let mut second = load(&host.options).await;
        assert_eq!(names(&host.pin_dir().join("links")), links);
        assert_eq!(programs_on("eth0").len(), 1, "the program was swapped, not added");
        assert_eq!(second.read().unwrap(), held(&plan));
        assert_eq!(second.apply(&plan).await.unwrap(), 0);
        assert_eq!(flows().get(&flow, 0).unwrap().frontend_port, 1);
    });
}

#[test]
fn drift_is_found_and_repaired() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    let plan = plan(1, 2, &[task(7, 1), task(8, 2)]);
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        dataplane.apply(&plan).await.unwrap();
        assert_eq!(dataplane.resync().await.unwrap(), 0);
        let mut backends: Array<_, Backend> = array(host.pin_dir(), maps::BACKENDS);
        backends.set(7, Backend::default(), 0).unwrap();
        backends.set(99, Backend { node: 1, ..Backend::default() }, 0).unwrap();
        let mut numbers: HashMap<_, Address, u32> =
            pinned(host.pin_dir(), maps::NODE_NUMBERS).try_into().unwrap();
        numbers.insert([9; 16], 9, 0).unwrap();
        assert!(dataplane.resync().await.unwrap() > 0);
        assert_eq!(dataplane.read().unwrap(), held(&plan));
        assert!(numbers.get(&[9; 16], 0).is_err());
        assert_eq!(dataplane.resync().await.unwrap(), 0);
        assert!(dataplane.repaired() > 0);
    });
}

#[test]
fn an_interface_that_was_replaced_is_used_again() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        dataplane.apply(&plan(1, 2, &[task(8, 2)])).await.unwrap();
        host.ns.sh("ip link del shoal-vx; ip link del eth0");
        host.plug_nowhere();
        host.ns.sh("ip addr add 10.88.0.99/24 dev eth0");
        dataplane.resync().await.unwrap();
        let config: Config = array(host.pin_dir(), maps::CONFIG).get(&0, 0).unwrap();
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        assert_eq!((config.uplink, config.vxlan), (index("eth0"), index("shoal-vx")));
        assert_eq!(config.node, 1);
        assert_eq!((programs_on("eth0").len(), programs_on("shoal-vx").len()), (1, 1));
        let addresses: HashMap<_, Address, u32> =
            pinned(host.pin_dir(), maps::ADDRESSES).try_into().unwrap();
        assert_eq!(addresses.keys().count(), 2);
    });
}

#[test]
fn next_hops_follow_the_kernel() {
    if !needs_root() {
        return;
    }
    let host = Host::new([10, 88, 0, 1].into());
    let switch = common::Switch::new();
    switch.plug(&host.ns, "10.88.0.1");
    let peer = Ns::new();
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        dataplane.apply(&plan(1, 2, &[task(8, 2)])).await.unwrap();
        let node =
            |number: u32| -> Node { array(host.pin_dir(), maps::NODES).get(&number, 0).unwrap() };
        assert_eq!(node(2).ifindex, 0, "nobody is there yet");
        // From here on nothing but the kernel's own reports tells of the peer.
        switch.plug(&peer, "10.88.0.2");
        let mac = |text: &str| shoal_routing::plan::parse_mac(text).unwrap();
        peer.sh("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:22; \
                 ip link set eth0 up");
        until(|| match node(2) {
            node if node.ifindex != 0 && node.next_hop == mac("02:00:00:00:00:22") => Ok(()),
            other => Err(other),
        })
        .await;
        let own = host.ns.sh("cat /sys/class/net/eth0/address || ip -br link show eth0");
        assert_eq!(node(2).mtu, 1500, "{own}");
        assert!(host.ns.sh("ip neigh").contains("managed"));

        host.ns.sh("ip route add 10.88.0.2/32 via 10.88.0.3 dev eth0");
        until(|| match node(2) {
            node if node.ifindex == 0 => Ok(()),
            other => Err(other),
        })
        .await;
        host.ns.sh("ip neigh add 10.88.0.3 lladdr 02:00:00:00:00:33 dev eth0 nud reachable || \
                    ip neigh replace 10.88.0.3 lladdr 02:00:00:00:00:33 dev eth0 nud reachable");
        until(|| match node(2) {
            node if node.next_hop == mac("02:00:00:00:00:33") => Ok(()),
            other => Err(other),
        })
        .await;
        // A number used for another address takes its next hop along at once, or none.
        dataplane.apply(&plan(1, 1, &[])).await.unwrap();
        assert_eq!(node(2), Node::default());
    });
}

#[test]
fn unloading_leaves_nothing() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    let inside = Ns::new();
    host.ns.block_on(|| async {
        let before = host.ns.sh("ip -br link | cut -d' ' -f1; ip neigh");
        let mut dataplane = load(&host.options).await;
        dataplane.apply(&plan(1, 2, &[task(7, 1), task(8, 2)])).await.unwrap();
        dataplane.attach(&task(7, 1).link(), inside.fd()).await.unwrap();
        drop(dataplane);
        unload(&host.options).await.unwrap();
        assert_eq!(programs_on("eth0"), []);
        assert!(!host.ns.sh("ip link show eth0").contains("xdp"));
        let after = host.ns.sh("ip -br link | cut -d' ' -f1; ip neigh show nud permanent");
        assert!(before.starts_with(after.trim_end()), "{after}");
        assert!(!host.pin_dir().exists());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(host.pin_dir().to_str().unwrap()));
        unload(&host.options).await.unwrap();
    });
}

#[test]
fn maps_of_another_release_forward_until_the_first_plan() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async {
        let mut first = load(&host.options).await;
        first.apply(&plan(1, 2, &[task(7, 1)])).await.unwrap();
        let inside = [Ns::new(), Ns::new()];
        let [seven, eight] = [7, 8].map(|number| task(number, 1).link());
        for (link, ns) in [&seven, &eight].into_iter().zip(&inside) {
            first.attach(link, ns.fd()).await.unwrap();
        }
        drop(first);
        let mut config: Array<_, Config> = array(host.pin_dir(), maps::CONFIG);
        let old = config.get(&0, 0).unwrap();
        config.set(0, Config { abi: old.abi + 1, ..old }, 0).unwrap();
        let (forwarding, answering) = (programs_on("eth0"), programs_on("shvtask7"));

        for _ in 0..2 {
            // Also a start that comes to no plan leaves what forwards.
            let mut waiting = load(&host.options).await;
            assert_eq!(waiting.read().unwrap(), Plan::default());
            assert_eq!(programs_on("eth0"), forwarding);
            waiting.attach(&seven, inside[0].fd()).await.unwrap();
            assert_eq!(programs_on("shvtask7"), answering, "it knows its flows");
        }
        let mut second = load(&host.options).await;
        host.ns.sh("ip link del shvtask8");
        let plan = plan(1, 2, &[task(7, 1), task(8, 2)]);
        second.apply(&plan).await.unwrap();
        assert_eq!(second.read().unwrap(), held(&plan));
        assert_ne!(programs_on("eth0"), forwarding);
        assert_ne!(programs_on("shvtask7"), answering);
        assert_eq!((programs_on("eth0").len(), programs_on("shvtask7").len()), (1, 1));
        // The tasks still there go on, though nobody has attached them again.
        let endpoints: HashMap<MapData, EndpointKey, Endpoint> =
            pinned(host.pin_dir(), maps::ENDPOINTS).try_into().unwrap();
        let macs: Vec<_> = endpoints.keys().map(|key| key.unwrap().mac).collect();
        assert_eq!(macs, [seven.mac]);
        assert!(!host.pin_dir().join("maps-old").exists());
    });
}

#[test]
fn what_cannot_work_is_said_and_nothing_is_made() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async {
        let error = |options: Options| async move {
            match shoal_dataplane::Dataplane::load(options).await {
                Ok(_) => panic!("loaded"),
                Err(error) => error.to_string(),
            }
        };
        let elsewhere = Options::new(host.pin_dir(), [192, 0, 2, 1].into());
        assert_eq!(error(elsewhere).await, "no uplink: no interface has the address 192.0.2.1");
        let nowhere = Options { uplink: Some("nope".into()), ..host.options.clone() };
        assert_eq!(error(nowhere).await, "no uplink: interface nope does not exist");
        assert!(!host.pin_dir().exists());

        host.ns.sh("ip link add other type vxlan external dstport 4789 && ip link set other up");
        let taken = "UDP port 4789 has another VXLAN device already: choose another port or \
                     remove it";
        assert_eq!(error(host.options.clone()).await, taken);
        assert!(!host.ns.sh("ip -br link").contains("shoal-vx"));
        assert!(!host.pin_dir().exists());

        // As late as can be: the programs are in place, the last one is refused.
        host.ns.sh("ip link del other; ip link add link eth0 name mv0 type macvlan");
        host.ns.sh("ip addr add 192.0.2.7/24 dev mv0; ip link set mv0 up");
        let no_xdp =
            Options { xdp: XdpMode::Native, ..Options::new(host.pin_dir(), [192, 0, 2, 7].into()) };
        let refused = error(no_xdp).await;
        assert!(refused.starts_with("the kernel cannot run XDP in this driver: "), "{refused}");
        assert!(refused.contains("os error"), "{refused}");
        assert!(!host.ns.sh("ip -br link").contains("shoal-vx"));
        assert!(!host.pin_dir().exists());
    });
}

#[test]
fn the_choice_of_hooks_is_kept_and_can_be_changed() {
    if !needs_root() {
        return;
    }
    let mut host = Host::alone();
    let cases = [
        (XdpMode::Native, TcMode::Auto, "native", "tcx"),
        // The far end of this veth has no program.
        (XdpMode::Auto, TcMode::Auto, "off", "tcx"),
        (XdpMode::Generic, TcMode::Tcx, "generic", "tcx"),
        (XdpMode::Native, TcMode::Clsact, "native", "clsact"),
        (XdpMode::Off, TcMode::Auto, "off", "tcx"),
    ];
    for (xdp, tc, wanted_xdp, wanted_tc) in cases {
        host.options.xdp = xdp;
        host.options.tc = tc;
        for _ in 0..2 {
            let choices = host.ns.block_on(|| async { load(&host.options).await.choices() });
            let chosen =
                |name: &str| choices.iter().find(|(known, _)| known == name).unwrap().1.clone();
            assert_eq!((chosen("xdp").as_str(), chosen("tc").as_str()), (wanted_xdp, wanted_tc));
            let interface = host.ns.sh("ip link show eth0");
            assert_eq!(interface.contains("xdpgeneric"), wanted_xdp == "generic");
            assert_eq!(interface.contains("prog/xdp"), wanted_xdp != "off", "{interface}");
            let filters = host.ns.sh("tc filter show dev eth0 ingress 2>/dev/null || true");
            assert_eq!(
                filters.matches("direct-action").count(),
                usize::from(wanted_tc == "clsact")
            );
            let tcx = host.ns.run(|| programs_on("eth0").len());
            assert_eq!(tcx, usize::from(wanted_tc == "tcx"));
            assert_eq!(vlan_offload(&host), wanted_xdp != "native");
        }
    }
}

/// Whether XDP on the uplink would see frames without their VLAN tags.
fn vlan_offload(host: &Host) -> bool {
    host.ns.sh("ethtool -k eth0").contains("rx-vlan-offload: on")
}

#[test]
fn an_uplink_gets_its_vlan_offload_back() {
    if !needs_root() {
        return;
    }
    let mut host = Host::alone();
    assert!(vlan_offload(&host));
    for wanted in [true, false] {
        if !wanted {
            // What was off is none of ours.
            host.ns.sh("ethtool -K eth0 rxvlan off");
        }
        host.options.xdp = XdpMode::Native;
        host.ns.block_on(|| async {
            let mut dataplane = load(&host.options).await;
            assert!(!vlan_offload(&host));
            if wanted {
                host.ns.sh("ethtool -K eth0 rxvlan on");
                dataplane.resync().await.unwrap();
                assert!(!vlan_offload(&host));
            }
            drop(dataplane);
            unload(&host.options).await.unwrap();
        });
        assert_eq!(vlan_offload(&host), wanted);
        assert!(!host.pin_dir().exists());
    }
}

#[test]
fn the_mesh_s_own_port_is_never_published() {
    if !needs_root() {
        return;
    }
    let mut host = Host::alone();
    host.options.vxlan_port = 4790;
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        let mut wanted = plan(1, 2, &[task(8, 2)]);
        let frontend = wanted.frontends[&frontend_key(Protocol::Tcp, PORT)];
        let own = frontend_key(Protocol::Udp, 4790);
        for key in [frontend_key(Protocol::Tcp, 4790), own, frontend_key(Protocol::Udp, 4789)] {
            wanted.frontends.insert(key, frontend);
        }
        dataplane.apply(&wanted).await.unwrap();
        let mut right = held(&wanted);
        right.frontends.remove(&own).unwrap();
        assert_eq!(dataplane.read().unwrap(), right);
        assert_eq!(dataplane.resync().await.unwrap(), 0);

        // One that an earlier release has put there goes.
        let mut frontends: Array<_, Frontend> = array(host.pin_dir(), maps::FRONTENDS);
        frontends.set(own, frontend, 0).unwrap();
        drop(dataplane);
        let mut dataplane = load(&host.options).await;
        assert_eq!(dataplane.apply(&wanted).await.unwrap(), 1);
        assert_eq!(dataplane.read().unwrap(), right);
    });
}
