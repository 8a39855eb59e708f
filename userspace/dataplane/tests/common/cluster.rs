//! Two nodes on one switch with a task on each and a client outside: real packets from the client
//! through the ingress node to the backend node and back.
//!
//! A task answers with its name and the client that it sees, then returns what it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use shoal_dataplane::{TcMode, XdpMode};
use shoal_routing::{Lower, Plan, TaskLink};

use super::{Host, Ns, PORT, Switch, TASK_PORT, Task, load, plan, task};

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 100);
/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// What a client sends in bulk: some hundred full segments.
pub const BULK: usize = 2 << 20;

pub type Counters = BTreeMap<String, (u64, u64)>;

/// A daemon's data plane at work in its namespace.
pub struct Daemon {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Counters>>,
}

impl Daemon {
    /// Loads, connects the tasks and applies the plan.
    pub fn start(host: &Host, tasks: &[(TaskLink, &Ns)], plan: Plan) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let options = host.options.clone();
        let netns = host.ns.fd().try_clone_to_owned().unwrap();
        let tasks: Vec<(TaskLink, OwnedFd)> = tasks
            .iter()
            .map(|(link, ns)| (link.clone(), ns.fd().try_clone_to_owned().unwrap()))
            .collect();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(async {
                let mut dataplane = load(&options).await;
                for (link, netns) in &tasks {
                    dataplane.attach(link, netns.as_fd()).await.unwrap();
                }
                dataplane.apply(&plan).await.unwrap();
                ready.send(()).unwrap();
                // A test that failed drops its end: that stops, too.
                let _ = stopped.await;
                dataplane.counters().unwrap()
            })
        });
        let daemon = Self { stop: Some(stop), thread: Some(thread) };
        is_ready.recv().expect("the data plane starts");
        daemon
    }

    /// Ends the process's part, as `kill -9` would: nothing is unloaded.
    pub fn kill(mut self) -> Counters {
        drop(self.stop.take());
        self.thread.take().expect("killed once").join().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Two nodes, a task on each, and a client.
pub struct Cluster {
    // Daemons go first, hosts unload, then the namespaces close.
    pub daemons: Vec<Daemon>,
    pub hosts: Vec<Host>,
    pub tasks: Vec<(Task, Ns)>,
    pub client: Ns,
    pub switch: Switch,
}

impl Cluster {
    pub fn new(xdp: XdpMode, tc: TcMode) -> Self {
        let switch = Switch::new();
        let client = Ns::new();
        switch.plug(&client, &CLIENT.to_string());
        let mut cluster = Self {
            daemons: Vec::new(),
            hosts: Vec::new(),
            tasks: vec![(task(7, 1), Ns::new()), (task(8, 2), Ns::new())],
            client,
            switch,
        };
        for number in [1, 2] {
            let mut host = Host::new(node(number));
            host.options.xdp = xdp;
            host.options.tc = tc;
            cluster.switch.plug(&host.ns, &node(number).to_string());
            cluster.hosts.push(host);
        }
        cluster.start(&[task(7, 1), task(8, 2)]);
        for (task, ns) in &cluster.tasks {
            serve(ns, format!("task{}", task.number));
        }
        cluster
    }

    pub fn start(&mut self, tasks: &[Task]) {
        for (number, host) in (1..).zip(&self.hosts) {
            let local: Vec<(TaskLink, &Ns)> = self
                .tasks
                .iter()
                .filter(|(task, _)| task.node == number)
                .map(|(task, ns)| (task.link(), ns))
                .collect();
            self.daemons.push(Daemon::start(host, &local, plan(number, 2, tasks)));
        }
    }

    pub fn kill(&mut self) -> Vec<Counters> {
        self.daemons.drain(..).map(Daemon::kill).collect()
    }

    /// Asks through a node until both tasks have answered.
    pub fn both_answer(&self, from: &Ns, seen: IpAddr, through: u8) {
        let answers: BTreeSet<String> = from.run(|| {
            (0..40).map(|_| ask(node(through)).unwrap_or_else(|error| panic!("{error}"))).collect()
        });
        let wanted = ["task7", "task8"].map(|task| format!("{task} {seen}"));
        assert_eq!(answers, BTreeSet::from(wanted), "through node {through}");
    }

    pub fn no_checksum_errors(&self) {
        let stacks = self
            .hosts
            .iter()
            .map(|host| &host.ns)
            .chain(self.tasks.iter().map(|(_, ns)| ns))
            .chain([&self.client]);
        for ns in stacks {
            let errors = ns.sh("nstat -asz | grep -i csum || true");
            for line in errors.lines() {
                let count = line.split_whitespace().nth(1);
                assert_eq!(count, Some("0"), "{line}");
            }
        }
    }
}

/// Stops a loop also when the test fails.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub fn node(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, number)
}

/// Answers, until the namespace is gone with the test, each TCP connection with its name and the
/// client it sees, then returns what it gets; and each datagram likewise.
pub fn serve(ns: &Ns, name: String) {
    let (tcp, udp) = ns.run(|| {
        let any = (Ipv4Addr::UNSPECIFIED, TASK_PORT);
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    let udp_name = name.clone();
    std::thread::spawn(move || {
        for connection in tcp.incoming() {
            let Ok(mut connection) = connection else { return };
            let name = name.clone();
            std::thread::spawn(move || {
                let Ok(client) = connection.peer_addr() else { return };
                let _ = writeln!(connection, "{name} {}", client.ip());
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length) = connection.read(&mut buffer) {
                    if length == 0 || connection.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{udp_name} {}", client.ip()).as_bytes(), client);
        }
    });
}

pub fn connect(to: Ipv4Addr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

pub fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.extend(byte);
    }
}

pub fn ask(to: Ipv4Addr) -> std::io::Result<String> {
    line(&mut connect(to)?)
}

/// Sends a lot, gets it back and compares.
pub fn bulk(to: Ipv4Addr) {
    let mut stream = connect(to).unwrap();
    line(&mut stream).unwrap();
    let sent: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let sending = std::thread::spawn(move || writer.write_all(&copy));
    let mut got = vec![0; BULK];
    stream.read_exact(&mut got).unwrap();
    sending.join().unwrap().unwrap();
    assert!(got == sent, "what came back is what was sent");
}

/// Asks with a datagram of this many bytes.
pub fn ask_udp(to: Ipv4Addr, length: usize) -> String {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect((to, PORT)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(&vec![b'?'; length]).unwrap();
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

pub fn counted(counters: &Counters, reason: &str) -> u64 {
    counters.get(reason).map_or(0, |(packets, _)| *packets)
}
