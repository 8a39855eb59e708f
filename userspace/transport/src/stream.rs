//! A connection that a client has opened.
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate. Servers here speak
//! first (HTTP/2 settings), so the first bytes, or the alert in their place, tell whether the server
//! wants this client: they are waited for, and kept for the reader.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Room for the first bytes; a server's settings are a few dozen.
const HEAD_BYTES: usize = 256;

/// Bytes to and from one server, over TLS.
#[derive(Debug)]
pub struct Stream {
    tls: TlsStream<TcpStream>,
    /// Read already.
    head: Vec<u8>,
    /// How much of `head` was handed on.
    taken: usize,
}

impl Stream {
    /// For a server that does not speak first.
    pub(crate) fn new(tls: TlsStream<TcpStream>) -> Self {
        Self { tls, head: Vec::new(), taken: 0 }
    }

    /// Waits for the server's first bytes.
    pub(crate) async fn opened(mut tls: TlsStream<TcpStream>) -> io::Result<Self> {
        let mut head = vec![0; HEAD_BYTES];
        let read = tls.read(&mut head).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.truncate(read);
        Ok(Self { tls, head, taken: 0 })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.head[self.taken..];
        if left.is_empty() {
            return Pin::new(&mut self.tls).poll_read(cx, buf);
        }
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
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
