//! Hosts for tests: network namespaces without names, which are gone when the last descriptor is
//! closed, and a pin folder each, which is unloaded when the host is dropped.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

pub mod bpf;
pub mod cluster;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::sched::{CloneFlags, setns, unshare};
use shoal_api::{
    AssignmentChange, Assignments, AssignmentsType, BackendState, PortConfig, Protocol,
    RouteBackend, RouteNode, RouteService, assignment_change::Item,
};
use shoal_dataplane::{Dataplane, Options, unload};
use shoal_routing::{Plan, State, TaskLink};
use tempfile::TempDir;

/// Port that every test publishes.
pub const PORT: u16 = 8080;
/// Port that tasks listen on.
pub const TASK_PORT: u16 = 80;
/// The published service's number.
pub const SERVICE: u16 = 5;

/// Ends a test that needs root, and says so.
pub fn needs_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

/// A network namespace.
pub struct Ns {
    fd: OwnedFd,
}

impl Ns {
    pub fn new() -> Self {
        let fd = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        let ns = Self { fd: fd.join().unwrap() };
        ns.sh("ip link set lo up");
        ns
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs on a thread of its own inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.fd, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs asynchronous work inside, on a runtime of one thread.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(work())
        })
    }

    /// Runs a command inside, and fails with what it wrote.
    pub fn sh(&self, command: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", command]).output().unwrap());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A path that `ip` takes for a namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

/// A switch that hosts are plugged into.
pub struct Switch {
    pub ns: Ns,
    /// Keeps each port's `empty_xdp` attached.
    ports: Mutex<Vec<aya::Ebpf>>,
}

impl Switch {
    pub fn new() -> Self {
        let ns = Ns::new();
        ns.sh("ip link add br0 type bridge && ip link set br0 up");
        Self { ns, ports: Mutex::default() }
    }

    /// Plugs a namespace in as `eth0` with this address. Neither end computes checksums late: what
    /// XDP sees must be what a wire would carry.
    pub fn plug(&self, host: &Ns, address: &str) {
        let port = self.ports.lock().unwrap().len();
        self.ns.sh(&format!(
            "ip link add p{port} type veth peer name eth0 netns {}; \
             ip link set p{port} master br0; ip link set p{port} up; \
             ethtool -K p{port} tx off >/dev/null",
            host.path()
        ));
        host.sh(&format!(
            "ip addr add {address}/24 dev eth0; ip link set eth0 up; \
             ethtool -K eth0 tx off >/dev/null"
        ));
        self.give_xdp(&format!("p{port}"));
    }

    /// `XDP_TX` at one end of a veth is delivered only if the other end has a program, too.
    fn give_xdp(&self, port: &str) {
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/ebpf/bench.o");
        let mut ebpf = aya::Ebpf::load_file(object).unwrap();
        let program: &mut aya::programs::Xdp =
            ebpf.program_mut("empty_xdp").unwrap().try_into().unwrap();
        program.load().unwrap();
        self.ns.run(|| program.attach(port, aya::programs::xdp::XdpMode::Driver).unwrap());
        self.ports.lock().unwrap().push(ebpf);
    }
}

/// A host with a pin folder.
pub struct Host {
    pub ns: Ns,
    pub options: Options,
    dir: TempDir,
}

impl Host {
    /// Not plugged in yet.
    pub fn new(address: Ipv4Addr) -> Self {
        let dir = tempfile::Builder::new().prefix("shdp-").tempdir().unwrap();
        let options = Options::new(dir.path().join("bpf"), address.into());
        Self { ns: Ns::new(), options, dir }
    }

    /// With an uplink that leads nowhere.
    pub fn alone() -> Self {
        let host = Self::new(Ipv4Addr::new(10, 88, 0, 1));
        host.plug_nowhere();
        host
    }

    /// Gives it that uplink.
    pub fn plug_nowhere(&self) {
        self.ns.sh("ip link add eth0 type veth peer name far; ip link set far up; \
             ip addr add 10.88.0.1/24 dev eth0; ip link set eth0 up");
    }

    pub fn pin_dir(&self) -> &Path {
        &self.options.pin_dir
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let options = self.options.clone();
        if let Err(error) = self.ns.block_on(|| async move { unload(&options).await }) {
            eprintln!("unload: {error}");
        }
        // Also when unloading failed half-way: the mount must not outlive the folder.
        let _ = nix::mount::umount2(self.pin_dir(), nix::mount::MntFlags::MNT_DETACH);
        let _ = self.dir.path();
    }
}

/// A task of the cluster: its number says everything else.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub number: u8,
    pub node: u8,
    pub state: BackendState,
}

/// An active one.
pub fn task(number: u8, node: u8) -> Task {
    Task { number, node, state: BackendState::Active }
}

impl Task {
    pub fn link(&self) -> TaskLink {
        TaskLink {
            task_id: format!("task{}", self.number),
            address: IpAddr::from([10, 0, 0, self.number]),
            prefix: 24,
            gateway: IpAddr::from([10, 0, 0, 1]),
            mac: [2, 0x42, 10, 0, 0, self.number],
        }
    }

    fn item(&self) -> Item {
        Item::Backend(RouteBackend {
            number: self.number.into(),
            task_id: self.link().task_id,
            service: SERVICE.into(),
            node: self.node.into(),
            address: self.link().address.to_string(),
            mac: format!("02:42:0a:00:00:{:02x}", self.number),
            state: self.state.into(),
        })
    }
}

/// The plan of node `own`, of nodes 1 to `nodes` at 10.88.0.N.
pub fn plan(own: u8, nodes: u8, tasks: &[Task]) -> Plan {
    let mut items: Vec<Item> = (1..=nodes)
        .map(|number| {
            Item::Node(RouteNode {
                number: number.into(),
                node_id: format!("n{number}"),
                data_path_addr: format!("10.88.0.{number}"),
            })
        })
        .collect();
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| PortConfig {
        protocol: protocol.into(),
        target_port: TASK_PORT.into(),
        published_port: PORT.into(),
    });
    items.push(Item::Service(RouteService {
        number: SERVICE.into(),
        service_id: "web-id".into(),
        name: "web".into(),
        ports: ports.to_vec(),
    }));
    items.extend(tasks.iter().map(Task::item));
    let changes =
        items.into_iter().map(|item| AssignmentChange { remove: false, item: Some(item) });
    let mut state = State::default();
    state
        .apply(&Assignments {
            r#type: AssignmentsType::Complete.into(),
            applies_to: 0,
            results_in: 1,
            changes: changes.collect(),
        })
        .unwrap();
    let plan = state.plan(&format!("n{own}"));
    assert_eq!(state.problems(), []);
    plan
}

/// Loads inside the host's namespace; for use within `block_on`.
pub async fn load(options: &Options) -> Dataplane {
    match Dataplane::load(options.clone()).await {
        Ok(dataplane) => dataplane,
        Err(error) => panic!("{error}"),
    }
}

/// Waits until a condition holds; fails with its last word after a few seconds.
pub async fn until<E: std::fmt::Debug>(mut condition: impl FnMut() -> Result<(), E>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(why) = condition() {
        assert!(Instant::now() < deadline, "did not come true: {why:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A pinned map.
pub fn pinned(pins: &Path, name: &str) -> Map {
    Map::from_map_data(MapData::from_pin(pins.join("maps").join(name)).unwrap()).unwrap()
}

/// A pinned array.
pub fn array<T: aya::Pod>(pins: &Path, name: &str) -> Array<MapData, T> {
    pinned(pins, name).try_into().unwrap()
}

/// A plan as the maps hold it: without the index.
pub fn held(plan: &Plan) -> Plan {
    Plan { index: 0, ..plan.clone() }
}

/// What is in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Ids of the programs on the ingress of an interface.
pub fn programs_on(interface: &str) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).unwrap();
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}
