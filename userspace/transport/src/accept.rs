//! Takes connections from members and strangers.
//!
//! Each handshake is a task of its own, so a slow or silent client holds up nobody. What has not
//! shown a certificate is bounded: handshakes in number and time, and strangers' connections, which
//! serve one call, as well. A certificate is good for the handshake; whether it still is, a service
//! asks at each call ([`Peer::still_passes`]).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::Acceptor;
use rustls::server::danger::ClientCertVerifier;
use shoal_identity::{Certificate, Identity};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::credentials::Credentials;
use crate::room::{Full, Limits, Place, Room};

/// A handshake takes two round trips: who needs longer than this is not trying.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way: what they hold in memory stays under some tens of megabytes, and a
/// cluster's nodes that all come back at once get through in a few rounds.
const HANDSHAKES: Limits = Limits {
    places: 256,
    per_source: 128,
    // Two round trips over a long way.
    silent: Duration::from_millis(250),
    // All places' handshakes on a slow processor.
    heard: Duration::from_secs(2),
};
/// Connections taken in a row, before those have a turn to say their first words: whoever does not
/// then is silent.
const ROW: usize = 16;
/// A stranger's call waits for one commit, at most the write time-out of the managers; its
/// connection ends after this.
const STRANGER: Duration = Duration::from_secs(60);
/// What a stranger may send in that time: a request to join is a few kilobytes.
const STRANGER_BYTES: usize = 256 << 10;
/// Connections of strangers: machines that join at once.
const STRANGERS: Limits = Limits {
    places: 256,
    per_source: 64,
    silent: Duration::from_secs(10),
    // There is nothing more to be heard of a stranger.
    heard: Duration::ZERO,
};
/// After an error of `accept`, such as too many open files: time for something to be closed.
const PAUSE: Duration = Duration::from_millis(100);
/// A peer that has vanished is noticed after this long in seconds, and three probes more.
const KEEPALIVE_S: u32 = 15;

/// Who is at the other end of a connection; tonic puts it into the extensions of each request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is by its certificate; `None` for a stranger.
    pub identity: Option<Identity>,
    /// Its certificate as it was at the handshake; see [`Peer::still_passes`].
    pub certificate: Option<Arc<Certificate>>,
    /// Where it called from.
    pub addr: SocketAddr,
    shown: Option<Arc<Shown>>,
}

/// What a member showed at its handshake.
#[derive(Debug)]
struct Shown {
    /// Its certificate first.
    chain: Vec<CertificateDer<'static>>,
    /// The content of our credentials under which the chain was found good last.
    good_under: AtomicU64,
}

/// Why a connection is worth no more, though it was when it was made. A new one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Its time is over.
    #[error("the certificate of this connection has expired: connect anew")]
    Expired,
    /// The cluster has rolled over to another root.
    #[error(
        "the certificate of this connection is of a root that is trusted no more: connect anew"
    )]
    Untrusted,
}

impl Peer {
    /// Whether the connection's certificate would pass a handshake now. Connections outlive
    /// certificates, and roots that were given up because somebody stole their keys.
    ///
    /// Signatures are looked at again only after our credentials have changed. A stranger showed
    /// nothing that could end.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn still_passes(&self, credentials: &Credentials) -> Result<(), Stale> {
        let (Some(certificate), Some(shown)) = (&self.certificate, &self.shown) else {
            return Ok(());
        };
        let now = UnixTime::now();
        if certificate.not_after.nanos() / 1_000_000_000 < now.as_secs() {
            return Err(Stale::Expired);
        }
        // Before the roots are read: what changes in between is looked at the next time.
        let generation = credentials.generation();
        if shown.good_under.load(Ordering::Relaxed) == generation {
            return Ok(());
        }
        let members = Arc::clone(&credentials.held().members);
        let (own, between) = shown.chain.split_first().ok_or(Stale::Untrusted)?;
        members.verify_client_cert(own, between, now).map_err(|_| Stale::Untrusted)?;
        shown.good_under.store(generation, Ordering::Relaxed);
        Ok(())
    }
}

/// Serves a port: yields each connection once its handshake is done. Dropping the stream closes the
/// port; connections that were yielded go on.
#[must_use]
pub fn accept(listener: TcpListener, credentials: &Credentials) -> Accepting {
    Accepting {
        listener,
        credentials: credentials.clone(),
        handshakes: JoinSet::new(),
        room: Room::new(HANDSHAKES),
        strangers: Strangers { room: Room::new(STRANGERS), stay: STRANGER },
        next: None,
        pause: None,
    }
}

/// See [`accept`].
#[derive(Debug)]
pub struct Accepting {
    listener: TcpListener,
    credentials: Credentials,
    handshakes: JoinSet<Option<Incoming>>,
    room: Arc<Room>,
    strangers: Strangers,
    /// Accepted, and waiting for a place.
    next: Option<(TcpStream, SocketAddr)>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// How those without a certificate are bounded.
#[derive(Clone, Debug)]
struct Strangers {
    room: Arc<Room>,
    stay: Duration,
}

impl Accepting {
    /// The port that is served.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes connections as long as there are some and there is room.
    fn poll_door(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROW {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let (tcp, addr) = match self.next.take() {
                Some(next) => next,
                None => match ready!(self.listener.poll_accept(cx)) {
                    Ok(next) => next,
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a connection");
                        self.pause = Some(Box::pin(sleep(PAUSE)));
                        continue;
                    }
                },
            };
            match self.room.enter(addr.ip(), Instant::now()) {
                Ok(place) => {
                    let (credentials, strangers) =
                        (self.credentials.clone(), self.strangers.clone());
                    self.handshakes.spawn(welcome(tcp, addr, credentials, place, strangers));
                }
                Err(Full::Source) => {
                    tracing::debug!(%addr, "too many connections without a handshake");
                }
                Err(Full::Room(wait)) => {
                    self.next = Some((tcp, addr));
                    self.pause = Some(Box::pin(sleep(wait)));
                }
            }
        }
        // There may be more.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl futures::Stream for Accepting {
    type Item = io::Result<Incoming>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Not over as long as there is a port.
            let _ = self.poll_door(cx);
            let Poll::Ready(Some(done)) = self.handshakes.poll_join_next(cx) else {
                return Poll::Pending;
            };
            if self.next.is_some() {
                // A place is free.
                self.pause = None;
            }
            // A handshake that came to nothing has said why.
            if let Ok(Some(incoming)) = done {
                return Poll::Ready(Some(Ok(incoming)));
            }
        }
    }
}

/// One handshake; `None` when it came to nothing.
async fn welcome(
    tcp: TcpStream,
    addr: SocketAddr,
    credentials: Credentials,
    place: Place,
    strangers: Strangers,
) -> Option<Incoming> {
    if let Err(error) = tune(&tcp) {
        tracing::debug!(%addr, %error, "connection lost");
        return None;
    }
    let Place { ticket, out } = place;
    let handshake = timeout(HANDSHAKE, async {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        ticket.heard();
        // The others' first words come before this one's mathematics.
        tokio::task::yield_now().await;
        hello.into_stream(Arc::clone(&credentials.held().server)).await
    });
    let done = tokio::select! {
        done = handshake => done,
        _ = out => {
            tracing::debug!(%addr, "handshake given up for others");
            return None;
        }
    };
    let tls = match done {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%addr, %error, "no handshake");
            return None;
        }
        Err(_) => {
            tracing::debug!(%addr, "handshake not in time");
            return None;
        }
    };
    let chain = tls.get_ref().1.peer_certificates().map(<[_]>::to_vec);
    let own = chain.as_ref().and_then(|chain| chain.first());
    let certificate = match own.map(|der| Certificate::from_der(der)).transpose() {
        Ok(certificate) => certificate.map(Arc::new),
        Err(error) => {
            tracing::warn!(%addr, %error, "a certificate of this cluster cannot be read");
            return None;
        }
    };
    let stay = match &certificate {
        Some(_) => None,
        None => Some(Stay {
            place: strangers.room.enter(addr.ip(), Instant::now()).ok()?,
            ended: false,
            bytes: STRANGER_BYTES,
            over: Box::pin(sleep(strangers.stay)),
        }),
    };
    let identity = certificate.as_ref().map(|certificate| certificate.identity.clone());
    // What was good at the handshake is looked at once more at the first call: the roots may have
    // changed meanwhile.
    let shown = chain.map(|chain| Arc::new(Shown { chain, good_under: AtomicU64::new(u64::MAX) }));
    Some(Incoming { tls, peer: Peer { identity, certificate, addr, shown }, stay })
}

/// Small messages go at once, and a peer that has vanished is noticed.
fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &KEEPALIVE_S)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &KEEPALIVE_S)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Incoming {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    /// A stranger's time is limited.
    stay: Option<Stay>,
}

#[derive(Debug)]
struct Stay {
    place: Place,
    /// Had to leave for another, or said too much.
    ended: bool,
    /// What it may still send.
    bytes: usize,
    over: Pin<Box<Sleep>>,
}

impl Incoming {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Stay {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Once it has said so, the channel must not be asked again.
        self.ended = self.ended || Pin::new(&mut self.place.out).poll(cx).is_ready();
        if self.ended { Poll::Ready(()) } else { self.over.as_mut().poll(cx) }
    }
}

impl Connected for Incoming {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(stay) = &mut this.stay else {
            return Pin::new(&mut this.tls).poll_read(cx, buf);
        };
        if stay.poll_over(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.tls).poll_read(cx, buf);
        match stay.bytes.checked_sub(buf.filled().len() - before) {
            Some(left) => stay.bytes = left,
            None => {
                stay.ended = true;
                buf.set_filled(before);
                return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use shoal_api::NodeRole;
    use shoal_api::time::Timestamp;
    use shoal_identity::{Csr, JoinToken, Key, Root, csr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::Dial;

    fn manager() -> (Credentials, JoinToken) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let now = Timestamp(u64::try_from(now.as_nanos()).unwrap());
        let (root, key) = (Root::found(&[1; 32], now), Key::from_seed(&[2; 32]));
        let identity = Identity {
            node_id: key.node_id(),
            role: NodeRole::Manager,
            cluster_id: "alpha".into(),
        };
        let request = Csr::parse(&csr::request(&key)).unwrap();
        let life = Duration::from_secs(3_600);
        let chain = root.issue(&request, &identity, now, life, [3; 16], "");
        let credentials = Credentials::new(&chain, &key, &root.cert_pem()).unwrap();
        (credentials, JoinToken::new(&root.digest(), &[4; 16]))
    }

    #[tokio::test]
    async fn a_stranger_may_stay_for_a_while_and_a_member_as_long_as_it_likes() {
        let (credentials, token) = manager();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut port = accept(listener, &credentials);
        port.strangers.stay = Duration::from_millis(300);
        let addr = port.local_addr().unwrap().to_string();
        let dial = Dial { handshake_timeout: Duration::from_secs(8), ..Dial::default() };

        let stranger = crate::connect_with_token(&addr, &token, &dial);
        let come = async {
            let mut stranger = port.next().await.unwrap().unwrap();
            assert_eq!(stranger.peer().identity, None);
            // Settings, empty: the client waits for them.
            stranger.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
            stranger
        };
        let (mut stranger, _open) = tokio::join!(come, async { stranger.await.unwrap() });
        let member = crate::connect(&credentials, &addr, &dial);
        let come = async {
            let mut member = port.next().await.unwrap().unwrap();
            assert_eq!(member.peer().identity, Some(credentials.identity()));
            member.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
            member
        };
        let (mut member, _open) = tokio::join!(come, async { member.await.unwrap() });

        let mut said = Vec::new();
        let ended = stranger.read_to_end(&mut said).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        // And it stays ended.
        assert!(stranger.read(&mut [0; 1]).await.is_err());
        // It was heard until then; the member is heard without an end.
        assert!(said.starts_with(b"PRI * HTTP/2.0"));
        let listening = timeout(port.strangers.stay * 2, member.read_to_end(&mut said));
        assert!(listening.await.is_err());
    }

    #[tokio::test]
    async fn a_stranger_that_says_too_much_is_not_heard_to_the_end() {
        let (credentials, token) = manager();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut port = accept(listener, &credentials);
        let tcp = TcpStream::connect(port.local_addr().unwrap()).await.unwrap();
        let config = crate::verify::client()
            .with_custom_certificate_verifier(Arc::new(crate::verify::Pinned::new(
                token.root_digest,
            )))
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(shoal_identity::MANAGER).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let (tls, stranger) = tokio::join!(connector.connect(name, tcp), port.next());
        let (mut tls, mut stranger) = (tls.unwrap(), stranger.unwrap().unwrap());
        let talk = tokio::spawn(async move { tls.write_all(&vec![0; 2 * STRANGER_BYTES]).await });
        let mut said = Vec::new();
        let ended = stranger.read_to_end(&mut said).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::QuotaExceeded);
        assert!(said.len() <= STRANGER_BYTES, "{}", said.len());
        assert!(stranger.read(&mut [0; 1]).await.is_err());
        drop(stranger);
        // It ran into a closed connection, or had all in the system's buffers.
        let _ = talk.await.unwrap();
    }
}
