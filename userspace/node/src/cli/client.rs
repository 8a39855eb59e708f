//! The connection to this host's daemon.
//!
//! gRPC over a unix socket. Opened at the first call, so that verbs which need no daemon never
//! see it; a daemon that is not there gives Docker's sentence.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use shoal_api::control_client::ControlClient;
use shoal_api::local_client::LocalClient;
use shoal_api::{
    Cluster, GetClusterRequest, ListNodesResponse, ListRequest, Network, Node, Service,
    StatusRequest, StatusResponse, Task,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Answers of a large cluster are larger than tonic's 4 MiB.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// The daemon behind a socket.
pub struct Client {
    socket: PathBuf,
    channel: tokio::sync::OnceCell<Channel>,
}

impl Client {
    /// Connects later.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, channel: tokio::sync::OnceCell::new() }
    }

    /// The daemon's own service.
    pub async fn local(&self) -> anyhow::Result<LocalClient<Channel>> {
        Ok(LocalClient::new(self.channel().await?.clone()))
    }

    /// The cluster, through the daemon.
    pub async fn control(&self) -> anyhow::Result<ControlClient<Channel>> {
        let client = ControlClient::new(self.channel().await?.clone());
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// All services.
    pub async fn services(&self) -> anyhow::Result<Vec<Service>> {
        let answer = self.control().await?.list_services(ListRequest {}).await?;
        Ok(answer.into_inner().services)
    }

    /// All tasks.
    pub async fn tasks(&self) -> anyhow::Result<Vec<Task>> {
        Ok(self.control().await?.list_tasks(ListRequest {}).await?.into_inner().tasks)
    }

    /// All nodes, who leads, and whom the leader reaches.
    pub async fn list_nodes(&self) -> anyhow::Result<ListNodesResponse> {
        Ok(self.control().await?.list_nodes(ListRequest {}).await?.into_inner())
    }

    /// All nodes.
    pub async fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        Ok(self.list_nodes().await?.nodes)
    }

    /// The cluster, without its secrets but with its join tokens.
    pub async fn cluster(&self) -> anyhow::Result<Cluster> {
        let answer = self.control().await?.get_cluster(GetClusterRequest {}).await?.into_inner();
        answer.cluster.context("the daemon answered without a cluster")
    }

    /// All networks.
    pub async fn networks(&self) -> anyhow::Result<Vec<Network>> {
        let answer = self.control().await?.list_networks(ListRequest {}).await?;
        Ok(answer.into_inner().networks)
    }

    /// How far every node's kernel is.
    pub async fn status(&self) -> anyhow::Result<StatusResponse> {
        Ok(self.control().await?.status(StatusRequest {}).await?.into_inner())
    }

    async fn channel(&self) -> anyhow::Result<&Channel> {
        self.channel.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> anyhow::Result<Channel> {
        let shown = self.socket.display().to_string();
        // Tried here, since tonic would wrap the reason twice.
        UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => anyhow::anyhow!(
                "permission denied while trying to connect to the Shoal daemon at unix://{shown}: \
                 run the command as root"
            ),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::anyhow!(
                "Cannot connect to the Shoal daemon at unix://{shown}. Is the shoal daemon running?"
            ),
            _ => anyhow::anyhow!("Cannot connect to the Shoal daemon at unix://{shown}: {error}"),
        })?;
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://shoal.local")
            .connect_with_connector(connector)
            .await
            .with_context(|| format!("the Shoal daemon at unix://{shown} does not answer"))
    }
}

/// Whether a write was refused because another writer was faster.
pub fn out_of_sequence(status: &tonic::Status) -> bool {
    status.message().contains("update out of sequence")
}
