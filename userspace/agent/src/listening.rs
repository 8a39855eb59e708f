//! Waits until a task that was just started listens on its published ports.
//!
//! A running task is in the rings of every node. Between the start of a server and its first
//! `listen` lie some milliseconds, or seconds, in which the kernel would refuse its clients: the
//! task is not reported as running before. Nothing is sent to it; the kernel's socket tables tell.

use std::time::Duration;

use shoal_api::{PortConfig, Protocol};
use tokio::time::{sleep, timeout};

/// A task that does not listen by then is taken as it is: its port may be meant for later.
const LIMIT: Duration = Duration::from_secs(5);
/// Between looks at the tables; a client's first packet takes a fraction of this.
const PERIOD: Duration = Duration::from_millis(5);

/// State of a TCP socket that listens, in `/proc/net/tcp`.
const TCP_LISTEN: &str = "0A";
/// State of a UDP socket without a peer.
const UDP_OPEN: &str = "07";

/// Returns once the process listens on the target port of each of `ports`, or the limit is over.
pub(crate) async fn wait(pid: u32, ports: &[PortConfig]) {
    let all = async {
        while !ports.iter().all(|port| listens(pid, port)) {
            sleep(PERIOD).await;
        }
    };
    if timeout(LIMIT, all).await.is_err() {
        tracing::info!(pid, "task does not listen on its published ports yet");
    }
}

/// Whether a socket in the process's network namespace takes what comes to a port. Where the
/// tables cannot be read (the process is gone), nothing is worth waiting for.
fn listens(pid: u32, port: &PortConfig) -> bool {
    let (tables, state) = match port.protocol() {
        Protocol::Tcp => (["tcp", "tcp6"], TCP_LISTEN),
        Protocol::Udp => (["udp", "udp6"], UDP_OPEN),
    };
    let mut readable = false;
    for table in tables {
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            readable = true;
            if has_socket(&text, port.target_port, state) {
                return true;
            }
        }
    }
    !readable
}

/// Whether a table of `/proc/net` has a socket with this port and state.
fn has_socket(table: &str, port: u32, state: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|local| local.rsplit_once(':'));
        let has_port = local.is_some_and(|(_, hex)| u32::from_str_radix(hex, 16) == Ok(port));
        has_port && fields.nth(1) == Some(state)
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue\n\
        0: 00000000:0050 00000000:0000 0A 00000000:00000000\n\
        1: 0100007F:1F90 0100007F:A0B2 01 00000000:00000000\n";

    fn tcp(port: u16) -> PortConfig {
        PortConfig { target_port: port.into(), ..PortConfig::default() }
    }

    #[test]
    fn only_a_listening_socket_of_the_port_counts() {
        assert!(has_socket(TABLE, 80, TCP_LISTEN));
        assert!(!has_socket(TABLE, 8080, TCP_LISTEN), "a connection is no listener");
        assert!(!has_socket(TABLE, 81, TCP_LISTEN));
        assert!(!has_socket("", 80, TCP_LISTEN));
    }

    #[tokio::test]
    async fn a_process_that_listens_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp(listener.local_addr().unwrap().port());
        assert!(listens(std::process::id(), &port));
        timeout(PERIOD, wait(std::process::id(), &[port])).await.unwrap();
    }

    #[tokio::test]
    async fn a_process_without_ports_or_that_is_gone_is_not_waited_for() {
        timeout(PERIOD, wait(std::process::id(), &[])).await.unwrap();
        timeout(PERIOD, wait(u32::MAX, &[tcp(80)])).await.unwrap();
    }

    #[tokio::test]
    async fn listening_later_ends_the_wait() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = tcp(address.port());
        assert!(!listens(std::process::id(), &port));
        let waiting = tokio::spawn(async move { wait(std::process::id(), &[port]).await });
        let listener = TcpListener::bind(address).unwrap();
        timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
        drop(listener);
    }
}
