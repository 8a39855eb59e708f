//! A host's network link that can be cut: nothing passes and nobody is told, as when a cable is out.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::eventually;

/// What others reach a host by.
pub struct Wire {
    pub addr: String,
    to: String,
    cut: watch::Sender<bool>,
    listening: JoinHandle<()>,
}

impl Wire {
    /// A link to the server at `to`.
    pub async fn new(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let cut = watch::Sender::new(false);
        let listening = tokio::spawn(listen(listener, to.clone(), cut.subscribe()));
        Self { addr, to, cut, listening }
    }

    /// The host is dead: a connection is refused from now on.
    pub fn close(&self) {
        self.listening.abort();
    }

    /// The host is there again.
    pub async fn open(&mut self) {
        let listener = eventually("the wire's port is free", || async {
            TcpListener::bind(&self.addr).await.ok()
        })
        .await;
        self.listening = tokio::spawn(listen(listener, self.to.clone(), self.cut.subscribe()));
    }

    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub fn heal(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, to: String, cut: watch::Receiver<bool>) {
    while let Ok((near, _)) = listener.accept().await {
        let (to, cut) = (to.clone(), cut.clone());
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(to).await else { return };
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::select! {
                () = pass(near_in, far_out, cut.clone()) => {}
                () = pass(far_in, near_out, cut) => {}
            }
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let through = cut.wait_for(|cut| !cut).await.is_ok();
        if !through || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
