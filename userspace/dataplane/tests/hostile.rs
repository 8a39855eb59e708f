//! Tasks and neighbours that send what they should not, as frames of their own making.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]
#![allow(unsafe_code, reason = "a packet socket's address has no safe form")]

mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use common::cluster::{CLIENT, Cluster, ask, ask_udp, counted, node};
use common::{PORT, TASK_PORT, needs_root};
use shoal_dataplane::{TcMode, XdpMode};

/// Sends whole frames out of `eth0`.
struct Raw(OwnedFd);

impl Raw {
    fn open() -> Self {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel just gave it to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zero is a value of these integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into().unwrap();
        address.sll_ifindex = nix::net::if_::if_nametoindex("eth0").unwrap().try_into().unwrap();
        let length = size_of_val(&address).try_into().unwrap();
        // SAFETY: the kernel reads as many bytes as it is told.
        let rc = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        Self(fd)
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.0, frame).unwrap(), frame.len());
    }
}

const fn task_mac(number: u8) -> [u8; 6] {
    [2, 0x42, 10, 0, 0, number]
}

#[test]
fn a_task_fills_no_table_of_its_host_with_arp() {
    if !needs_root() {
        return;
    }
    let mut cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    let mac = task_mac(cluster.tasks[0].0.number);
    // More senders than the neighbour table has room for, which all namespaces share.
    cluster.tasks[0].1.run(|| {
        let raw = Raw::open();
        for sender in 0..3_000_u32 {
            let mut frame = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac].concat();
            frame.extend((0x0b00_0000 + sender).to_be_bytes());
            frame.extend([0; 6]);
            frame.extend(node(1).octets());
            raw.send(&frame);
        }
    });
    let known = cluster.hosts[0].ns.sh("ip neigh show nud all");
    assert!(known.lines().count() < 50, "{known}");
    cluster.client.run(|| (0..10).for_each(|_| assert!(ask(node(1)).is_ok())));
    assert_eq!(counted(&cluster.kill()[0], "task_arp"), 3_000);
}

#[test]
fn a_task_speaks_into_no_vlan() {
    if !needs_root() {
        return;
    }
    let mut cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    // A flow that a reply would find: from a port of the client to the task of the node.
    let (number, port) = cluster.client.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect((node(1), PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.send(b"?").unwrap();
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let number: u8 = if answer.starts_with("task7") { 7 } else { 8 };
        (number, socket.local_addr().unwrap().port())
    });
    let (index, (_, ns)) =
        cluster.tasks.iter().enumerate().find(|(_, (task, _))| task.number == number).unwrap();
    let macs = [[2; 6], task_mac(number)].concat();
    let addresses = [Ipv4Addr::new(10, 0, 0, number), CLIENT];
    let reply = datagram(&macs, addresses, [TASK_PORT, port]);
    ns.run(|| {
        let raw = Raw::open();
        for tag in [[0x81, 0, 0, 100], [0x81, 0, 0x20, 0]] {
            raw.send(&[&reply[..12], &tag, &reply[12..]].concat());
        }
        raw.send(&reply);
    });
    let counters = cluster.kill();
    assert_eq!(counted(&counters[index], "task_spoofed"), 2);
    let sent = ["task_replied", "task_tunneled"].map(|reason| counted(&counters[index], reason));
    assert_eq!(sent.iter().sum::<u64>(), 2, "the answer, and the frame without a tag");
}

#[test]
fn a_frontend_serves_its_own_network_and_no_vlan_beside_it() {
    if !needs_root() {
        return;
    }
    // XDP would see a veth's frames without their tags.
    let mut cluster = Cluster::new(XdpMode::Off, TcMode::Auto);
    let macs = [&cluster.hosts[0].ns, &cluster.client].map(|ns| {
        let link = ns.sh("ip -o link show eth0");
        let mac = link.split(" link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>()
    });
    let asked = datagram(&macs.concat(), [CLIENT, node(1)], [5_555, PORT]);
    cluster.client.run(|| {
        let raw = Raw::open();
        for _ in 0..20 {
            raw.send(&[&asked[..12], &[0x81, 0, 0, 100], &asked[12..]].concat());
        }
        // Without the tag it is answered; what was sent before has arrived before.
        assert!(ask_udp(node(1), 1).starts_with("task"));
    });
    let counters = cluster.kill();
    let taken = ["tc_delivered", "tc_forwarded"].map(|reason| counted(&counters[0], reason));
    assert_eq!(taken.iter().sum::<u64>(), 1);
    assert!(counted(&counters[0], "tc_foreign") >= 20);
}

/// A datagram without a checksum of UDP; all pairs are source, destination, but for the MACs.
fn datagram(macs: &[u8], addresses: [Ipv4Addr; 2], ports: [u16; 2]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0, 0];
    header.extend(addresses.iter().flat_map(Ipv4Addr::octets));
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let ports = ports.map(u16::to_be_bytes).concat();
    [macs, &[8, 0], &header, &ports, &[0, 12, 0, 0], b"more"].concat()
}
