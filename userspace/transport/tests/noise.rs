//! Addresses where no manager listens, and clients that are not of this world.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, Server, eventually, patient};
use shoal_api::JoinRequest;
use shoal_api::ca_client::CaClient;
use shoal_transport::{Credentials, Dial, DialError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// A port where everyone is answered with the same bytes, or by the closing of the connection.
async fn port(answer: Option<&'static [u8]>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Some(answer) = answer else { return };
                let _ = tcp.read(&mut [0; 1_024]).await.unwrap();
                // It may have gone.
                let _ = tcp.write_all(answer).await;
                std::future::pending::<()>().await;
            });
        }
    });
    (addr, task)
}

async fn dialed(addr: &str, credentials: &Credentials) -> DialError {
    let dial = Dial { handshake_timeout: Duration::from_millis(500), ..Dial::default() };
    shoal_transport::connect(credentials, addr, &dial).await.unwrap_err()
}

#[tokio::test]
async fn what_is_not_a_manager_is_told_apart() {
    let credentials = Cluster::found("alpha").worker();
    let check = async |answer, expected: &str| {
        let (addr, task) = port(answer).await;
        let error = dialed(&addr, &credentials).await;
        assert_eq!(error.to_string(), expected.replace("ADDR", &addr));
        task.abort();
    };
    let no_tls = "ADDR is not a Shoal manager: it does not speak TLS 1.3";
    check(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), no_tls).await;
    // A plain-text gRPC server's settings.
    check(Some(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0"), no_tls).await;
    check(Some(b"SSH-2.0-OpenSSH_9.6\r\n"), no_tls).await;
    check(Some(&[0; 64]), no_tls).await;
    // An alert: no protocol version in common.
    let alert = "ADDR is not a Shoal manager: it sent the TLS alert ProtocolVersion";
    check(Some(b"\x15\x03\x03\0\x02\x02\x46"), alert).await;
    check(Some(b""), "ADDR does not answer").await;

    let hangs_up =
        "cannot reach ADDR: it hangs up at once, as a port that is not a Shoal manager does";
    check(None, hangs_up).await;
    let nobody = dialed("127.0.0.1:1", &credentials).await;
    assert_eq!(nobody.to_string(), "cannot reach 127.0.0.1:1: Connection refused (os error 111)");
    let nowhere = dialed("nowhere.invalid:2377", &credentials).await;
    assert!(matches!(nowhere, DialError::Lookup { .. }), "{nowhere}");
}

#[tokio::test]
async fn a_name_is_tried_at_all_its_addresses() {
    // `localhost` is `::1` and `127.0.0.1` nearly everywhere; the manager has one of them.
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let port = server.addr.rsplit_once(':').unwrap().1;
    let addr = format!("localhost:{port}");
    let channel = shoal_transport::connect(&cluster.worker(), &addr, &patient()).await.unwrap();
    common::seen(&channel).await.unwrap();
}

#[tokio::test]
async fn clients_that_do_not_speak_tls_get_nothing_and_disturb_nobody() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    for said in [
        b"GET /shoal.v1.Ca/Join HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        &[0xff; 4_096],
        b"\x16\x03\x01\xff\xff\x01",
    ] {
        let mut tcp = TcpStream::connect(&server.addr).await.unwrap();
        tcp.write_all(said).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // It may end in a reset.
        let _ = tcp.read_to_end(&mut answer).await;
        // At most a TLS alert.
        assert!(answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 0x15), "{answer:?}");
        assert!(server.asked_by(&cluster.worker()).await.is_ok());
    }
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr));
    let plain = plain.unwrap().connect_lazy();
    assert!(CaClient::new(plain).join(JoinRequest::default()).await.is_err());
    assert!(server.asked_by(&cluster.worker()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_connections_are_bounded_and_gone_in_ten_seconds() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for number in 0..1_000u32 {
        let socket = TcpSocket::new_v4().unwrap();
        // Four sources, which could take all places if they were given away for ever.
        socket.bind(format!("127.0.1.{}:0", number % 4).parse().unwrap()).unwrap();
        let mut tcp = socket.connect(server.addr.parse().unwrap()).await.unwrap();
        if number % 2 == 0 {
            // Half of them begin.
            tcp.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
        }
        silent.push(tcp);
    }
    // Others are served meanwhile, and at once.
    let asked = Instant::now();
    server.asked_by(&cluster.worker()).await.unwrap();
    let took = asked.elapsed();
    eprintln!("served after {took:?} beside 1000 silent connections");
    assert!(took < Duration::from_secs(3), "{took:?}");

    let open = |silent: &[TcpStream]| {
        let gone = |tcp: &&TcpStream| !matches!(tcp.try_read(&mut [0; 16]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        silent.len() - silent.iter().filter(gone).count()
    };
    let most = 256;
    eventually("few are left", || (open(&silent) <= most).then_some(())).await;
    eprintln!("bounded after {:?}", began.elapsed());
    eventually("none is left", || (open(&silent) == 0).then_some(())).await;
    let took = began.elapsed();
    eprintln!("all are gone after {took:?}");
    assert!(took < Duration::from_secs(14), "{took:?}");
    server.asked_by(&cluster.worker()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_all_come_at_once_from_one_address_are_all_served() {
    let cluster = Cluster::found("alpha");
    let server = Server::start(cluster.manager()).await;
    let client = cluster.worker();
    let mut comers = tokio::task::JoinSet::new();
    // More than there are places for handshakes.
    for _ in 0..400 {
        let (client, addr) = (client.clone(), server.addr.clone());
        comers.spawn(async move {
            let channel = shoal_transport::connect(&client, &addr, &patient()).await.unwrap();
            common::seen(&channel).await.unwrap();
        });
    }
    while let Some(comer) = comers.join_next().await {
        comer.unwrap();
    }
}
