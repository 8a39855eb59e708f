//! A connection that can be cut as a cable is: both ends stay open, and nothing comes through.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A port that leads to another one.
pub struct Wire {
    pub addr: String,
    /// `true` stops all traffic, also that of new connections.
    pub cut: watch::Sender<bool>,
    accepts: JoinHandle<()>,
}

impl Wire {
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (cut, is_cut) = watch::channel(false);
        let target = target.to_owned();
        let accepts = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target.clone(), is_cut.clone()));
            }
        });
        Self { addr, cut, accepts }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

async fn carry(mut near: TcpStream, target: String, mut is_cut: watch::Receiver<bool>) {
    let mut far = TcpStream::connect(target).await.unwrap();
    let cut = async {
        // A wire whose other end is gone is as good as cut.
        let _ = is_cut.wait_for(|cut| *cut).await;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        () = cut => {}
    }
    std::future::pending::<()>().await;
}
