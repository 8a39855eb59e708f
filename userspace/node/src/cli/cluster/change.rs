//! The one way that a cluster's settings are written: read, change, compare and swap.
//!
//! The system writes to the same object (it counts ids there), so a lost race means little: the
//! change is made again on what is there now.

use shoal_api::{Cluster, ClusterSpec, UpdateClusterRequest};

use crate::cli::client::{Client, out_of_sequence};

/// Writers that take turns with others give up after so many lost races.
const ATTEMPTS: usize = 20;

/// Reads the cluster, lets `change` make a request of it and sends that.
///
/// # Errors
/// What `change` or the daemon answered.
pub async fn update(
    client: &Client,
    mut change: impl FnMut(&Cluster, &mut UpdateClusterRequest) -> anyhow::Result<()>,
) -> anyhow::Result<Cluster> {
    let mut control = client.control().await?;
    for attempt in 1.. {
        let cluster = client.cluster().await?;
        let mut request = UpdateClusterRequest {
            version: cluster.version(),
            spec: Some(cluster.spec.clone().unwrap_or_default()),
            ..UpdateClusterRequest::default()
        };
        change(&cluster, &mut request)?;
        match control.update_cluster(request).await {
            Ok(_) => return Ok(cluster),
            Err(status) if attempt < ATTEMPTS && out_of_sequence(&status) => {}
            Err(status) => return Err(status.into()),
        }
    }
    unreachable!("the last attempt returns")
}

/// The spec of a request that [`update`] made.
pub fn spec(request: &mut UpdateClusterRequest) -> &mut ClusterSpec {
    request.spec.get_or_insert_with(ClusterSpec::default)
}
