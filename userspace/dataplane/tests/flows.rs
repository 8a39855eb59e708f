//! Flows of one client that only their frontends tell apart, with real connections.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod common;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Instant;

use common::cluster::{Cluster, PATIENCE, counted, line, node};
use common::{PORT, needs_root};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use shoal_dataplane::{TcMode, XdpMode};

/// Connects from a port that other connections of the client may have, too.
fn connect_from(port: u16, to: Ipv4Addr) -> TcpStream {
    let tcp = (AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let fd: OwnedFd = socket::socket(tcp.0, tcp.1, tcp.2, None).unwrap();
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    let own = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    socket::bind(fd.as_raw_fd(), &own).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let there = SockaddrIn::from(SocketAddrV4::new(to, PORT));
    socket::connect(stream.as_raw_fd(), &there).unwrap();
    stream
}

fn echoes(stream: &mut TcpStream, word: &str) {
    writeln!(stream, "{word}").unwrap();
    assert_eq!(line(stream).unwrap(), word);
}

#[test]
fn one_client_port_holds_a_connection_through_each_node() {
    if !needs_root() {
        return;
    }
    let mut cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    cluster.client.run(|| {
        // Enough ports that both tasks get some, by either node first.
        let mut pairs: Vec<[TcpStream; 2]> = Vec::new();
        for port in 40_000..40_016 {
            let order = if port % 2 == 0 { [1, 2] } else { [2, 1] };
            let begin = Instant::now();
            let mut pair = order.map(|through| connect_from(port, node(through)));
            assert!(begin.elapsed() < PATIENCE / 6, "port {port}: a beginning was repeated");
            let [one, other] = pair.each_mut().map(|stream| line(stream).unwrap());
            assert_eq!(one, other, "the ring leaves the ingress node out");
            pairs.push(pair);
        }
        for round in 0..3 {
            for [one, other] in &mut pairs {
                echoes(one, &format!("one {round}"));
                echoes(other, &format!("other {round}"));
            }
        }
        // The elder may go, the other stays.
        for [one, mut other] in pairs {
            drop(one);
            echoes(&mut other, "still there");
        }
    });
    let aside: u64 = cluster.kill().iter().map(|c| counted(c, "flow_alternate")).sum();
    assert_eq!(aside, 16);
    cluster.no_checksum_errors();
}

#[test]
fn a_client_port_goes_from_node_to_node_when_its_connection_ended() {
    if !needs_root() {
        return;
    }
    let mut cluster = Cluster::new(XdpMode::Native, TcMode::Auto);
    cluster.client.run(|| {
        for turn in 0..20 {
            let mut stream = connect_from(40_000, node(1 + turn % 2));
            line(&mut stream).unwrap();
            echoes(&mut stream, "there");
            // Broken off, so that no end keeps the port for a minute.
            socket::setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
                .unwrap();
        }
    });
    let counters = cluster.kill();
    let sum = |reason| counters.iter().map(|c| counted(c, reason)).sum::<u64>();
    assert_eq!((sum("flow_alternate"), sum("flow_clash")), (0, 0));
    assert_eq!(sum("flow_new") + sum("flow_moved"), 20);
    cluster.no_checksum_errors();
}
