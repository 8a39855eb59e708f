//! Tasks of one host: what they get when they are attached, and what stays of them: nothing.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod common;

use aya::maps::{HashMap, MapData};
use common::{Host, Ns, load, names, needs_root, pinned, programs_on, task, until};
use shoal_datapath::abi::{Endpoint, EndpointKey, Flow, FlowKey, maps};
use shoal_dataplane::TcMode;
use shoal_routing::plan::address_bytes;
use shoal_routing::{Lower, TaskLink};

#[test]
fn a_task_gets_its_interface_and_loses_it() {
    if !needs_root() {
        return;
    }
    for mode in [TcMode::Auto, TcMode::Clsact] {
        let mut host = Host::alone();
        host.options.tc = mode;
        let inside = Ns::new();
        let link = task(7, 1).link();
        host.ns.block_on(|| async {
            let mut dataplane = load(&host.options).await;
            let port = dataplane.attach(&link, inside.fd()).await.unwrap();
            let mac = port.host_mac.map(|byte| format!("{byte:02x}")).join(":");

            assert_eq!(
                inside.sh("ip -4 -br addr show eth0").split_whitespace().nth(2),
                Some("10.0.0.7/24")
            );
            let routes = inside.sh("ip -4 route");
            assert_eq!(routes.trim(), "default via 10.0.0.1 dev eth0 proto static onlink");
            let neighbours = inside.sh("ip neigh");
            assert!(neighbours.contains(&format!("10.0.0.1 dev eth0 lladdr {mac} PERMANENT")));
            let interface = inside.sh("ip link show eth0");
            assert!(interface.contains("mtu 1450") && interface.contains("02:42:0a:00:00:07"));
            assert!(inside.sh("ip -br link show lo").contains("LOOPBACK,UP"));

            let endpoints = || -> HashMap<MapData, EndpointKey, Endpoint> {
                pinned(host.pin_dir(), maps::ENDPOINTS).try_into().unwrap()
            };
            let key = EndpointKey { mac: link.mac, pad: [0; 2] };
            let endpoint = endpoints().get(&key, 0).unwrap();
            assert_eq!((endpoint.ifindex, endpoint.gateway), (port.ifindex, port.host_mac));
            assert_eq!(endpoint.address[12..], [10, 0, 0, 7]);
            match mode {
                TcMode::Clsact => {
                    let filters = host.ns.sh("tc filter show dev shvtask7 ingress");
                    assert_eq!(filters.matches("direct-action").count(), 1, "{filters}");
                }
                _ => assert_eq!(programs_on("shvtask7").len(), 1),
            }

            // The same again, also by the next process, finds its work done.
            assert_eq!(dataplane.attach(&link, inside.fd()).await.unwrap(), port);
            drop(dataplane);
            let mut dataplane = load(&host.options).await;
            assert_eq!(dataplane.attach(&link, inside.fd()).await.unwrap(), port);

            dataplane.detach(&link.task_id).await.unwrap();
            assert!(endpoints().get(&key, 0).is_err());
            assert!(!host.ns.sh("ip -br link").contains("shv"));
            assert!(!inside.sh("ip -br link").contains("eth0"));
            dataplane.detach(&link.task_id).await.unwrap();
        });
    }
}

#[test]
fn a_task_whose_namespace_died_leaves_nothing() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async {
        let mut dataplane = load(&host.options).await;
        let inside = Ns::new();
        let link = task(7, 1).link();
        dataplane.attach(&link, inside.fd()).await.unwrap();
        drop(inside);
        // The kernel takes namespaces down in the background.
        until(|| match host.ns.sh("ip -br link") {
            links if links.contains("shv") => Err(links),
            _ => Ok(()),
        })
        .await;
        dataplane.detach(&link.task_id).await.unwrap();
        let endpoints: HashMap<MapData, EndpointKey, Endpoint> =
            pinned(host.pin_dir(), maps::ENDPOINTS).try_into().unwrap();
        assert_eq!(endpoints.keys().count(), 0);
        let links = names(&host.pin_dir().join("links"));
        assert!(!links.iter().any(|link| link.starts_with("task-")), "{links:?}");
    });
}

#[test]
fn the_flows_of_an_ended_task_are_forgotten_and_no_others() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    // Far more than are read in one go.
    const EACH: u16 = 10_000;
    let [seven, eight, stranger] = [7, 8, 9].map(|number| task(number, 1).link());
    let open = || -> HashMap<MapData, FlowKey, Flow> {
        pinned(host.pin_dir(), maps::FLOWS).try_into().unwrap()
    };
    let left = |link: &TaskLink| {
        let task = address_bytes(link.address);
        open().keys().filter(|key| key.as_ref().unwrap().task == task).count()
    };
    host.ns.block_on(|| async {
        let inside = [Ns::new(), Ns::new()];
        let mut dataplane = load(&host.options).await;
        for (link, ns) in [&seven, &eight].into_iter().zip(&inside) {
            dataplane.attach(link, ns.fd()).await.unwrap();
        }
        let mut flows = open();
        for link in [&seven, &eight, &stranger] {
            let task = address_bytes(link.address);
            for client_port in 0..EACH {
                let key = FlowKey { client_port, task, protocol: 6, ..FlowKey::default() };
                flows.insert(key, Flow::default(), 0).unwrap();
            }
        }
        let each = usize::from(EACH);
        // The table may forget a few by itself.
        let most = each * 9 / 10..=each;

        dataplane.detach(&seven.task_id).await.unwrap();
        assert_eq!(left(&seven), 0);
        assert!(most.contains(&left(&eight)) && most.contains(&left(&stranger)));

        // A repair finds a task whose namespace went away without a word.
        drop(inside);
        until(|| match host.ns.sh("ip -br link") {
            links if links.contains("shv") => Err(links),
            _ => Ok(()),
        })
        .await;
        dataplane.resync().await.unwrap();
        assert_eq!(left(&eight), 0);
        assert!(most.contains(&left(&stranger)));
    });
}
