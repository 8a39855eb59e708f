//! `shoal info`: what this host's daemon is, what the cluster is, what the data plane chose and
//! counted. The cluster's half is there on managers only; without it the rest is still told.

mod json;
mod text;

use shoal_api::{Cluster, InfoRequest, InfoResponse, LocalState, Node, NodeRole};

use crate::cli::client::Client;
use crate::cli::listing::Format;
use crate::cli::say;

/// Flags of `shoal info`.
#[derive(clap::Args)]
pub struct Args {
    /// How to print it: table, json, or a template such as '{{.Swarm.NodeID}}'.
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    format: Format,
}

/// All that there is to tell.
#[derive(Default)]
struct View {
    info: InfoResponse,
    /// On managers that reach the leader.
    cluster: Option<(Cluster, Vec<Node>)>,
    /// Why this node cannot go on, or why the cluster did not answer.
    error: String,
}

impl View {
    async fn read(client: &Client) -> anyhow::Result<Self> {
        let info = client.local().await?.info(InfoRequest {}).await?.into_inner();
        let mut view = Self { error: info.error.clone(), info, cluster: None };
        if view.is_manager() {
            // At once: without a leader each of them waits as long as it may.
            match tokio::try_join!(client.cluster(), client.list_nodes()) {
                Ok((cluster, listed)) => view.cluster = Some((cluster, listed.nodes)),
                Err(error) => {
                    let status = error.downcast_ref::<tonic::Status>();
                    view.error =
                        status.map_or_else(|| error.to_string(), |s| s.message().to_owned());
                }
            }
        }
        Ok(view)
    }

    /// Whether this node can be asked about the cluster.
    fn is_manager(&self) -> bool {
        self.info.state() == LocalState::Active && self.info.role() == NodeRole::Manager
    }

    /// This node's address without a port, as Docker shows it.
    fn addr(&self) -> String {
        let addr = &self.info.addr;
        addr.parse::<std::net::SocketAddr>().map_or_else(|_| addr.clone(), |a| a.ip().to_string())
    }

    fn state(&self) -> &'static str {
        match self.info.state() {
            LocalState::Inactive => "inactive",
            LocalState::Pending => "pending",
            LocalState::Active => "active",
            LocalState::Error => "error",
            LocalState::Locked => "locked",
        }
    }

    /// Node id and host:port of each manager, by address; the id where it is known.
    fn managers(&self) -> Vec<(String, String)> {
        let known = match &self.cluster {
            Some((_, nodes)) => nodes
                .iter()
                .filter_map(|node| Some((node.id.clone(), node.manager.as_ref()?.addr.clone())))
                .collect(),
            None => self.info.managers.iter().map(|addr| (String::new(), addr.clone())).collect(),
        };
        let mut known: Vec<(String, String)> = known;
        known.sort_by(|a, b| a.1.cmp(&b.1));
        known
    }

    /// What an operator should do something about, in Docker's words.
    fn warnings(&self) -> Vec<String> {
        let managers = self
            .cluster
            .as_ref()
            .map_or(0, |(_, nodes)| nodes.iter().filter(|node| node.manager.is_some()).count());
        if managers == 2 { vec![TWO_MANAGERS.to_owned()] } else { Vec::new() }
    }
}

/// Two managers need each other for every write: one alone would be safer.
const TWO_MANAGERS: &str = "\
WARNING: Running Swarm in a two-manager configuration. This configuration provides
         no fault tolerance, and poses a high risk to lose control over the cluster.
         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the
         Swarm for fault-tolerance.";

/// Asks the daemon and prints the answer; warnings go to stderr.
///
/// # Errors
/// The daemon is not there.
pub async fn run(client: &Client, args: &Args) -> anyhow::Result<()> {
    let view = View::read(client).await?;
    match &args.format {
        Format::Json => say(&format!("{}\n", json::document(&view))),
        Format::Template(template) | Format::Columns(template) => {
            say(&format!("{}\n", template.render(&json::document(&view))));
        }
        Format::Table => {
            say(&text::text(&view));
            view.warnings().iter().for_each(|warning| eprintln!("{warning}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use shoal_api::{CaSpec, ClusterSpec, Counter, ExternalCa, ManagerStatus, Meta, RaftSpec};

    use super::*;
    use crate::cli::cluster::tls::tests::cluster;

    /// A manager of a cluster with two of them.
    pub fn manager() -> View {
        let node = |id: &str, addr: &str| Node {
            id: id.into(),
            manager: Some(ManagerStatus { raft_id: 1, addr: addr.into() }),
            ..Node::default()
        };
        let cluster = Cluster {
            meta: Some(Meta { version: 7, ..Meta::default() }),
            spec: Some(ClusterSpec {
                name: "default".into(),
                raft: Some(RaftSpec { snapshot_interval: Some(500), ..RaftSpec::default() }),
                ca: Some(CaSpec {
                    external_cas: vec![ExternalCa {
                        url: "https://ca/sign".into(),
                        ..ExternalCa::default()
                    }],
                    force_rotate: 2,
                    ..CaSpec::default()
                }),
                autolock: true,
                ..ClusterSpec::default()
            }),
            address_pools: vec!["10.20.0.0/16".into(), "10.30.0.0/16".into()],
            ..cluster(Some("bb"))
        };
        let nodes = vec![
            node("b", "10.0.0.2:2377"),
            node("n", "10.0.0.1:2377"),
            Node { id: "w".into(), ..Node::default() },
        ];
        View { info: info(NodeRole::Manager), cluster: Some((cluster, nodes)), ..View::default() }
    }

    /// An active node's own half.
    pub fn info(role: NodeRole) -> InfoResponse {
        InfoResponse {
            state: LocalState::Active.into(),
            name: "n1".into(),
            node_id: "n".into(),
            cluster_id: "c".into(),
            role: role.into(),
            addr: "10.0.0.1:2377".into(),
            version: "0.1.0".into(),
            dataplane: vec!["xdp=native".into()],
            held_index: 7,
            counters: vec![Counter { name: "no_backend".into(), packets: 2, bytes: 120 }],
            managers: vec!["10.0.0.1:2377".into()],
            certificate_not_after_ns: 86_400_000_000_000,
            ..InfoResponse::default()
        }
    }

    #[test]
    fn two_managers_are_warned_of() {
        assert_eq!(manager().warnings(), [TWO_MANAGERS]);
        let mut three = manager();
        if let Some((_, nodes)) = &mut three.cluster {
            nodes[2].manager = Some(ManagerStatus::default());
        }
        assert!(three.warnings().is_empty());
        let worker = View { info: info(NodeRole::Worker), ..View::default() };
        assert!(worker.warnings().is_empty());
    }
}
