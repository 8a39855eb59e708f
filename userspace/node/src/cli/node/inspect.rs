//! `shoal node inspect`: whole nodes with Docker's field names, by a template, or for people.

use serde_json::{Value, json};
use shoal_api::Node;

use super::{Reachability, View, pretty};
use crate::cli::client::Client;
use crate::cli::cluster::tls::Roots;
use crate::cli::inspect::Document as _;
use crate::cli::listing::Format;
use crate::cli::{Usage, say};

/// Flags and arguments of `shoal node inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// Print it for people.
    #[arg(long)]
    pretty: bool,
    /// How to print each node: json, or a template such as '{{.Status.State}}'.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Ids, names or `self`.
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Prints the nodes that the words mean.
///
/// # Errors
/// The first word that means nothing, after those that were found, or what the daemon answered.
pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    if args.pretty && args.format.is_some() {
        let text = "cannot supply extra formatting options to the pretty template";
        return Err(Usage(text.to_owned()).into());
    }
    let view = View::read(client).await?;
    // A manager that cannot tell the root can still tell the nodes.
    let roots = client.cluster().await.map(|cluster| Roots::of(&cluster)).unwrap_or_default();
    let found: Vec<_> = args.nodes.iter().map(|word| view.find(word)).collect();
    let nodes: Vec<&Node> = found.iter().filter_map(|found| found.as_ref().ok().copied()).collect();
    let documents = nodes.iter().map(|node| document(node, &view, &roots));
    let text = match args.format {
        _ if args.pretty => {
            documents.map(|node| pretty::text(&node)).collect::<Vec<_>>().join("\n")
        }
        None | Some(Format::Table | Format::Columns(_)) => {
            format!("{}\n", serde_json::to_string_pretty(&documents.collect::<Vec<_>>())?)
        }
        Some(Format::Json) => documents.map(|node| format!("{node}\n")).collect(),
        Some(Format::Template(template)) => {
            documents.map(|node| format!("{}\n", template.render(&node))).collect()
        }
    };
    say(&text);
    for node in found {
        node?;
    }
    Ok(())
}

/// All of a node: what the store has of it, and how the leader sees it.
fn document(node: &Node, view: &View, roots: &Roots) -> Value {
    let mut document = node.document();
    if let Some(tls) = roots.issuer(node) {
        document["Description"]["TLSInfo"] = tls.document();
    }
    if let (Some(manager), Some(reachability)) = (&node.manager, view.reachability(node)) {
        let mut status = json!({ "Reachability": reachability.word(), "Addr": manager.addr });
        if reachability == Reachability::Leader {
            status["Leader"] = true.into();
        }
        document["ManagerStatus"] = status;
    }
    document
}

#[cfg(test)]
pub mod tests {
    use shoal_api::{
        ManagerStatus, Meta, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus,
    };

    use super::*;
    use crate::cli::cluster::tls::tests::{ROOT, cluster, under};

    /// A manager that leads, with all that can be known of it.
    pub fn manager() -> Value {
        let node = Node {
            id: "nodeID".into(),
            meta: Some(Meta { version: 9, created_at_ns: 1_000_000_000, updated_at_ns: 0 }),
            spec: Some(NodeSpec {
                role: NodeRole::Manager.into(),
                labels: [("zone".to_owned(), "a".to_owned()), ("ssd".to_owned(), String::new())]
                    .into(),
                ..NodeSpec::default()
            }),
            description: Some(NodeDescription {
                hostname: "n1".into(),
                os: "linux".into(),
                arch: "x86_64".into(),
                version: "0.1.0".into(),
                nano_cpus: 2_000_000_000,
                memory_bytes: 20 << 20,
            }),
            status: Some(NodeStatus {
                state: NodeState::Ready.into(),
                addr: "10.0.0.1".into(),
                ..NodeStatus::default()
            }),
            manager: Some(ManagerStatus { raft_id: 1, addr: "10.0.0.1:2377".into() }),
            ..under("aa")
        };
        let node = Node { id: "nodeID".into(), ..node };
        let view = View {
            nodes: Vec::new(),
            leader: "nodeID".into(),
            reachable: vec!["nodeID".into()],
            own: String::new(),
        };
        document(&node, &view, &Roots::of(&cluster(None)))
    }

    #[test]
    fn a_manager_is_shown_in_dockers_shape() {
        let document = manager();
        assert_eq!(document["Spec"]["Role"], "manager");
        assert_eq!(document["Spec"]["Labels"]["zone"], "a");
        assert_eq!(document["Description"]["Hostname"], "n1");
        assert_eq!(document["Description"]["Resources"]["NanoCPUs"], 2_000_000_000u64);
        assert_eq!(document["Description"]["TLSInfo"]["TrustRoot"], ROOT);
        assert_eq!(
            document["Status"],
            json!({ "State": "ready", "Message": "", "Addr": "10.0.0.1" })
        );
        let status =
            json!({ "Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377" });
        assert_eq!(document["ManagerStatus"], status);
        assert_eq!(document["Version"]["Index"], 9);
    }
}
