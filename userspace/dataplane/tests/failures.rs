//! What a start that fails, or a bad moment, leaves in the kernel.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod common;

use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::maps::{Array, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use common::{Host, Ns, array, held, load, names, needs_root, plan, programs_on, task};
use nix::net::if_::InterfaceFlags;
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

#[test]
fn what_was_detached_is_attached_again() {
    if !needs_root() {
        return;
    }
    for tc in [TcMode::Auto, TcMode::Clsact] {
        let mut host = Host::alone();
        host.options.tc = tc;
        host.options.xdp = XdpMode::Native;
        let inside = Ns::new();
        host.ns.block_on(|| async {
            let mut dataplane = load(&host.options).await;
            dataplane.attach(&task(7, 1).link(), inside.fd()).await.unwrap();
            dataplane.apply(&plan(1, 2, &[task(7, 1), task(8, 2)])).await.unwrap();
            assert_eq!(dataplane.resync().await.unwrap(), 0);
            let attached = || {
                ["eth0", "shoal-vx", "shvtask7"].map(|interface| {
                    let filters = format!("tc filter show dev {interface} ingress 2>/dev/null");
                    let filters = host.ns.sh(&format!("{filters} || true"));
                    programs_on(interface).len() + filters.matches("direct-action").count()
                })
            };
            assert_eq!(attached(), [1; 3]);

            let links = host.pin_dir().join("links");
            for link in names(&links) {
                common::bpf::detach(&links.join(link)).unwrap();
            }
            host.ns.sh("for i in eth0 shoal-vx shvtask7; do \
                        tc qdisc del dev $i clsact 2>/dev/null || true; done");
            assert_eq!(attached(), [0; 3]);
            assert!(!host.ns.sh("ip link show eth0").contains("prog/xdp"));

            assert_eq!(dataplane.resync().await.unwrap(), 4);
            assert_eq!(attached(), [1; 3]);
            assert!(host.ns.sh("ip link show eth0").contains("prog/xdp"));
            assert_eq!(dataplane.resync().await.unwrap(), 0);
        });
    }
}

#[test]
fn tasks_that_end_during_a_start_do_not_end_it() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    host.ns.block_on(|| async { drop(load(&host.options).await) });
    for _ in 0..3 {
        // As tasks' interfaces look; the last are the last to be attached and the first to go.
        let add = |last: u8| {
            format!("link add shvx{last} type bridge\nlink set shvx{last} alias shoal:x{last}\n")
        };
        let del = |last: u8| format!("link del shvx{last}\n");
        let batch = |lines: String| {
            host.ns.sh(&format!("ip -batch - <<'END'\n{lines}END"));
        };
        batch((0..80).map(add).collect());
        std::thread::scope(|scope| {
            scope.spawn(|| batch((0..80).rev().map(del).collect()));
            host.ns.block_on(|| async { drop(load(&host.options).await) });
        });
    }
    host.ns.block_on(|| async { drop(load(&host.options).await) });
    let left = names(&host.pin_dir().join("links"));
    assert!(!left.iter().any(|link| link.starts_with("task-")), "{left:?}");
}

#[test]
fn the_tunnel_is_never_up_without_its_program() {
    if !needs_root() {
        return;
    }
    let host = Host::alone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            host.ns.run(|| {
                let (mut looks, mut bare) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let up = nix::ifaddrs::getifaddrs().unwrap().any(|interface| {
                        interface.interface_name == "shoal-vx"
                            && interface.flags.contains(InterfaceFlags::IFF_UP)
                    });
                    // Gone between the two looks: nothing was missing.
                    if up
                        && SchedClassifier::query_tcx("shoal-vx", TcAttachType::Ingress)
                            .is_ok_and(|(_, programs)| programs.is_empty())
                    {
                        bare += 1;
                    }
                    looks += 1;
                }
                (looks, bare)
            })
        });
        host.ns.block_on(|| async {
            let mut dataplane = load(&host.options).await;
            for _ in 0..5 {
                host.ns.sh("ip link del shoal-vx");
                assert_eq!(dataplane.resync().await.unwrap(), 1);
            }
            assert!(host.ns.sh("ip link show shoal-vx").contains("LOWER_UP"));
        });
        stop.store(true, Ordering::Relaxed);
        let (looks, bare) = looking.join().unwrap();
        assert!(looks > 50, "{looks}");
        assert_eq!(bare, 0, "of {looks} looks");
    });
}

/// The process that the next test kills runs that test, too, with these in its environment.
const PINS: &str = "SHDP_PINS";
const TASK: &str = "SHDP_TASK";

#[test]
fn a_process_killed_at_any_moment_leaves_what_the_next_one_repairs() {
    if !needs_root() {
        return;
    }
    let task_seven = task(7, 1).link();
    let plans = [plan(1, 2, &[task(7, 1), task(8, 2)]), plan(1, 3, &[task(7, 1), task(9, 3)])];
    if let (Some(pins), Some(inside)) = (std::env::var_os(PINS), std::env::var_os(TASK)) {
        let mut options = Options::new(pins, [10, 88, 0, 1].into());
        (options.xdp, options.tc) = match std::env::var_os("SHDP_CLSACT") {
            Some(_) => (XdpMode::Off, TcMode::Clsact),
            None => (XdpMode::Native, TcMode::Auto),
        };
        let inside = std::fs::File::open(inside).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for plan in plans.iter().cycle() {
                let mut dataplane = load(&options).await;
                dataplane.attach(&task_seven, inside.as_fd()).await.unwrap();
                dataplane.apply(plan).await.unwrap();
                dataplane.detach(&task_seven.task_id).await.unwrap();
            }
        });
    }
    for clsact in [false, true] {
        let mut host = Host::alone();
        let inside = Ns::new();
        for round in 0..12_u64 {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let name = "a_process_killed_at_any_moment_leaves_what_the_next_one_repairs";
            command.args([name, "--exact", "--nocapture"]);
            command.env(PINS, host.pin_dir()).env(TASK, inside.path());
            if clsact {
                command.env("SHDP_CLSACT", "1");
            }
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = host.ns.run(|| command.spawn().unwrap());
            // The moment is what is tried out; nothing is waited for.
            std::thread::sleep(Duration::from_millis(20 + round * 37));
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), None, "ended by itself: {said}");
        }
        (host.options.xdp, host.options.tc) = match clsact {
            true => (XdpMode::Off, TcMode::Clsact),
            false => (XdpMode::Native, TcMode::Auto),
        };
        host.ns.block_on(|| async {
            let mut dataplane = load(&host.options).await;
            dataplane.attach(&task_seven, inside.fd()).await.unwrap();
            dataplane.apply(&plans[0]).await.unwrap();
            assert_eq!(dataplane.read().unwrap(), held(&plans[0]));
            assert_eq!(dataplane.resync().await.unwrap(), 0);
        });
        let interfaces = host.ns.sh("ip -br link");
        assert_eq!(interfaces.matches("shv").count(), 1, "{interfaces}");
        assert_eq!(interfaces.matches("shoal-vx").count(), 1, "{interfaces}");
        let links = names(&host.pin_dir().join("links"));
        assert_eq!(links.len(), if clsact { 0 } else { 4 }, "{links:?}");
    }
}

#[test]
fn two_daemons_of_one_namespace_leave_each_other_s_filters() {
    if !needs_root() {
        return;
    }
    let mut host = Host::alone();
    host.options.tc = TcMode::Clsact;
    let mut other = host.options.clone();
    other.pin_dir = host.pin_dir().join("other");
    other.prefix = "other".into();
    other.vxlan_port = 4790;
    let filters = || {
        let filters = host.ns.sh("tc filter show dev eth0 ingress");
        filters.matches("direct-action").count()
    };
    host.ns.block_on(|| async {
        for _ in 0..2 {
            drop(load(&host.options).await);
            drop(load(&other).await);
            assert_eq!(filters(), 2);
        }
        shoal_dataplane::unload(&other).await.unwrap();
        assert_eq!(filters(), 1);
        let mut left = load(&host.options).await;
        assert_eq!(left.resync().await.unwrap(), 0);
    });
}
