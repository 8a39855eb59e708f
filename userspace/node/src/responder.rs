//! `shoal responder`: a small, fast server that says who answered whom.
//!
//! `GET /` gives `{"task":…,"node":…,"client":…}`, `GET /bytes/N` gives N bytes; over UDP every
//! datagram is answered with the JSON. It is what demos, tests and benchmarks publish, and runs as
//! pid 1 of a task, so it must take SIGTERM itself. The answer of a connection is written once,
//! when it is accepted: a request then costs one shared pointer.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

/// Flags of `shoal responder`.
#[derive(clap::Args)]
pub struct Args {
    /// Port to listen on.
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    address: IpAddr,
    /// Answer datagrams too.
    #[arg(long)]
    udp: bool,
}

/// Connections that may wait to be accepted: a benchmark opens thousands at once.
const BACKLOG: u32 = 4_096;

/// How long to wait for a descriptor when there is none left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);

/// What `/bytes/N` is cut from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Who answers.
#[derive(Clone)]
struct Identity {
    task: String,
    node: String,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The port cannot be had.
pub fn main(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let address = SocketAddr::new(args.address, args.port);
        let identity = Identity::from_environment();
        let listener =
            listen(address).with_context(|| format!("cannot listen on {address}/tcp"))?;
        if args.udp {
            let socket = UdpSocket::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}/udp"))?;
            tokio::spawn(answer_datagrams(socket, identity.clone()));
        }
        tokio::spawn(accept(listener, identity));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // At once: open connections of a benchmark would keep the runtime busy.
        process::exit(0)
    })
}

impl Identity {
    fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = || nix::unistd::gethostname().ok()?.into_string().ok();
        Self {
            task: variable("SHOAL_TASK_NAME").or_else(host).unwrap_or_default(),
            node: variable("SHOAL_NODE_NAME").unwrap_or_default(),
        }
    }

    /// The answer to `client`.
    fn answer(&self, client: SocketAddr) -> Bytes {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port()).to_string();
        let answer = json!({ "task": self.task, "node": self.node, "client": client });
        Bytes::from(format!("{answer}\n"))
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, identity: Identity) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                tokio::spawn(serve(stream, identity.answer(client)));
            }
            // Out of descriptors: those that are open go on, and their end makes room.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Serves one connection; its end, also an early one, is the client's affair.
async fn serve(stream: TcpStream, answer: Bytes) {
    // A small answer must not wait for the acknowledgement of the one before it.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &answer);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    let connection = http.pipeline_flush(true).serve_connection(TokioIo::new(stream), service);
    let _ = connection.await;
}

fn respond(request: &Request<Incoming>, answer: &Bytes) -> Response<Payload> {
    let path = request.uri().path();
    let bytes = path.strip_prefix("/bytes/").and_then(|count| count.parse().ok());
    let (status, payload, kind) = match (request.method(), path, bytes) {
        (&(Method::GET | Method::HEAD), "/", _) => {
            (StatusCode::OK, Payload::Once(answer.clone()), "application/json")
        }
        (&(Method::GET | Method::HEAD), _, Some(count)) => {
            (StatusCode::OK, Payload::Zeros(count), "application/octet-stream")
        }
        (&(Method::GET | Method::HEAD), ..) => {
            (StatusCode::NOT_FOUND, Payload::Once(Bytes::from_static(b"not found\n")), "text/plain")
        }
        _ => {
            let text = Bytes::from_static(b"method not allowed\n");
            (StatusCode::METHOD_NOT_ALLOWED, Payload::Once(text), "text/plain")
        }
    };
    let mut response = Response::new(payload);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A body that allocates nothing.
enum Payload {
    /// A shared text.
    Once(Bytes),
    /// So many zeros.
    Zeros(u64),
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Once(text) => std::mem::take(text),
            Self::Zeros(left) => {
                let chunk = usize::try_from(*left).unwrap_or(usize::MAX).min(ZEROS.len());
                *left -= chunk as u64;
                Bytes::from_static(&ZEROS[..chunk])
            }
        };
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Once(text) => text.len() as u64,
            Self::Zeros(left) => *left,
        })
    }
}

async fn answer_datagrams(socket: UdpSocket, identity: Identity) {
    let mut buffer = [0; 2_048];
    loop {
        // Errors are those of single clients (an ICMP answer): the next datagram is another's.
        if let Ok((_, client)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&identity.answer(client), client).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn identity() -> Identity {
        Identity { task: "web.1".into(), node: "n1".into() }
    }

    #[test]
    fn the_answer_names_task_node_and_client() {
        let client = "[::ffff:10.88.0.100]:4321".parse().unwrap();
        assert_eq!(
            identity().answer(client),
            "{\"client\":\"10.88.0.100:4321\",\"node\":\"n1\",\"task\":\"web.1\"}\n"
        );
    }

    #[tokio::test]
    async fn zeros_are_as_many_as_asked_for() {
        for count in [0, 1, 65_536, 200_001] {
            let body = Payload::Zeros(count).collect().await.unwrap().to_bytes();
            assert_eq!(body.len() as u64, count);
        }
    }

    #[tokio::test]
    async fn a_connection_is_kept_until_the_client_says_close() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, identity()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n\
                        GET /bytes/3 HTTP/1.1\r\nHost: x\r\n\r\n\
                        GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let answers = text.split("HTTP/1.1 ").skip(1);
        let codes: Vec<_> = answers.filter_map(|answer| answer.lines().next()).collect();
        assert_eq!(codes, ["200 OK", "200 OK", "404 Not Found"]);
        assert!(text.contains(&format!("\"client\":\"{}\"", stream.local_addr().unwrap())));
    }
}
