//! The two doors: the local unix socket and a manager's TCP port.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_api::local_server::LocalServer;
use shoal_transport::Credentials;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::{error, warn};

use super::gate::Gate;
use super::local::Local;

/// A peer that is silent for this long, and for as long after a ping, is gone: a host that was cut
/// off must not keep its streams.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Why a door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// A daemon answers there.
    #[error("another daemon answers at unix://{path}: stop it or set --socket")]
    SocketTaken {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than a socket is there.
    #[error("{path} exists and is not a socket: remove it or set --socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot open the socket {path}: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The port is taken.
    #[error("{addr} is in use by another process: stop it or set --listen-addr")]
    PortTaken {
        /// Where we wanted to listen.
        addr: SocketAddr,
    },
    /// The port cannot be had.
    #[error("cannot listen on {addr}: {source}")]
    Port {
        /// Where we wanted to listen.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The local socket; removed when dropped.
pub struct LocalSocket {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
    inode: u64,
}

impl LocalSocket {
    /// Opens the socket for root, in the place of one that a dead daemon left.
    ///
    /// # Errors
    /// A daemon answers there, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, DoorError> {
        let error = |source| DoorError::Socket { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(error)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(there) if !std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()) => {
                return Err(DoorError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(DoorError::SocketTaken { path: path.to_owned() });
            }
            Ok(_) => std::fs::remove_file(path).map_err(error)?,
            Err(missing) if missing.kind() == ErrorKind::NotFound => {}
            Err(other) => return Err(error(other)),
        }
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(error)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        let inode = std::fs::symlink_metadata(path).map_err(error)?.ino();
        Ok(Self { path: path.to_owned(), listener, inode })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until aborted.
    pub fn serve(&self, local: Local, gate: Gate) -> JoinHandle<()> {
        let listener = self.listener.try_clone().and_then(UnixListener::from_std);
        let path = self.path.clone();
        tokio::spawn(async move {
            let served = match listener {
                Ok(listener) => {
                    let server = Server::builder().add_service(LocalServer::new(local));
                    let incoming = UnixListenerStream::new(listener).filter(is_from_the_host);
                    server.add_service(gate).serve_with_incoming(incoming).await
                }
                Err(error) => return error!(%error, "cannot serve the local socket"),
            };
            if let Err(error) = served {
                error!(%error, socket = %path.display(), "the local socket has failed");
            }
        })
    }
}

/// Whether a caller is a process of the host: a task of `rootfs:/` sees the socket's file, too, and
/// must not command the cluster. Tasks have a pid namespace of their own, callers have ours.
///
/// A failed accept goes on to whoever reports it.
fn is_from_the_host(accepted: &std::io::Result<UnixStream>) -> bool {
    let Ok(stream) = accepted else { return true };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let allowed = pid.is_some_and(shares_our_pids);
    if !allowed {
        warn!(?pid, "refuses a caller from inside a task at the local socket");
    }
    allowed
}

/// Whether a process has this daemon's pid namespace; one that is gone has not.
fn shares_our_pids(pid: i32) -> bool {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).ok();
    let ours = namespace("self");
    ours.is_some() && ours == namespace(&pid.to_string())
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Not another's, who took our place while we were ending.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            // It is stale then, which the next daemon sees too.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Takes a manager's port.
///
/// # Errors
/// It is taken, or the address is not of this machine.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, DoorError> {
    TcpListener::bind(addr).await.map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => DoorError::PortTaken { addr },
        _ => DoorError::Port { addr, source },
    })
}

/// Answers managers, agents and, for as long as one call takes, strangers, until aborted.
pub fn serve(listener: TcpListener, credentials: &Credentials, routes: Routes) -> JoinHandle<()> {
    let incoming = shoal_transport::accept(listener, credentials);
    tokio::spawn(async move {
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE));
        if let Err(error) = server.add_routes(routes).serve_with_incoming(incoming).await {
            error!(%error, "the managers' port has failed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/shoal.sock");
        let first = LocalSocket::bind(&path).unwrap();
        let refused = LocalSocket::bind(&path).err().map(|error| error.to_string()).unwrap();
        assert!(refused.starts_with("another daemon answers at unix://"), "{refused}");
        drop(first);
        assert!(!path.exists(), "an orderly end removes it");
        // What a killed daemon leaves: the file without a listener.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let next = LocalSocket::bind(&path).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(next.path()).is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "text").unwrap();
        let refused = LocalSocket::bind(&path).err().map(|error| error.to_string()).unwrap();
        assert!(refused.contains("is not a socket"), "{refused}");
        assert!(path.exists());
    }

    #[test]
    fn a_process_with_pids_of_its_own_is_no_process_of_the_host() {
        assert!(shares_our_pids(std::process::id().try_into().unwrap()));
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: a pid namespace needs root");
            return;
        }
        // It forks, so that its child is the first of the new namespace, and waits for it.
        let mut unshare = std::process::Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "cat"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let inside: i32 = loop {
            let listed = std::fs::read_to_string(&children).unwrap_or_default();
            if let Some(pid) = listed.split_whitespace().next() {
                break pid.parse().unwrap();
            }
            assert!(std::time::Instant::now() < deadline, "no child of unshare appears");
            std::thread::yield_now();
        };
        let allowed = shares_our_pids(inside);
        unshare.kill().unwrap();
        unshare.wait().unwrap();
        assert!(!allowed);
    }

    #[tokio::test]
    async fn a_taken_port_says_so() {
        let taken = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = taken.local_addr().unwrap();
        let refused = listen(addr).await.unwrap_err().to_string();
        assert_eq!(
            refused,
            format!("{addr} is in use by another process: stop it or set --listen-addr")
        );
    }
}
