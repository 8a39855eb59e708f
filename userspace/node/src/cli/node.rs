//! `shoal node ls|ps|inspect|update`.

use clap::{Subcommand, ValueEnum};
use shoal_api::{InfoRequest, Node, NodeAvailability, NodeSpec, NodeState, UpdateNodeRequest};

use crate::cli::client::Client;
use crate::cli::human::{capitalized, now_ns};
use crate::cli::listing::{Listing, Output};
use crate::cli::resolve::resolve;
use crate::cli::{inspect, say, task};

/// Verbs of `shoal node`.
#[derive(Subcommand)]
pub enum Verb {
    /// List nodes.
    #[command(visible_alias = "list")]
    Ls(Output),
    /// List the tasks of nodes.
    Ps {
        #[command(flatten)]
        list: task::List,
        /// Ids or names; this node when there is none.
        #[arg(value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Show whole nodes as JSON.
    Inspect {
        /// Ids, names or `self`.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Change what a node may do.
    Update {
        /// Whether it takes tasks: drain moves those that it has, pause only takes no new ones.
        #[arg(long, value_enum)]
        availability: Availability,
        /// Id, name or `self`.
        node: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Availability {
    Active,
    Pause,
    Drain,
}

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("HOSTNAME", "Hostname"),
    ("STATUS", "Status"),
    ("AVAILABILITY", "Availability"),
    ("MANAGER STATUS", "ManagerStatus"),
    ("ENGINE VERSION", "EngineVersion"),
];

/// Does what the verb says.
///
/// # Errors
/// What the daemon answered, or a word that means nothing.
pub async fn run(client: &Client, verb: Verb) -> anyhow::Result<()> {
    let (nodes, leader) = client.nodes().await?;
    let own = client.local().await?.info(InfoRequest {}).await?.into_inner().node_id;
    let word = |word: &str| if word == "self" { own.clone() } else { word.to_owned() };
    match verb {
        Verb::Ls(output) => say(&list(nodes, &own, &leader, output)),
        Verb::Inspect { nodes: words } => {
            return inspect::print(&words.iter().map(|w| word(w)).collect::<Vec<_>>(), &nodes);
        }
        Verb::Ps { list, nodes: mut words } => {
            if words.is_empty() {
                words.push("self".to_owned());
            }
            let ids: Vec<&str> = words
                .iter()
                .map(|w| resolve(&word(w), &nodes).map(|node| node.id.as_str()))
                .collect::<Result<_, _>>()?;
            let mut tasks = client.tasks().await?;
            tasks.retain(|task| ids.contains(&task.node_id.as_str()));
            say(&task::render(tasks, &nodes, list, now_ns()));
        }
        Verb::Update { availability, node } => {
            let found = resolve(&word(&node), &nodes)?;
            let availability = match availability {
                Availability::Active => NodeAvailability::Active,
                Availability::Pause => NodeAvailability::Pause,
                Availability::Drain => NodeAvailability::Drain,
            };
            let spec = found.spec.clone().unwrap_or_default();
            let request = UpdateNodeRequest {
                node_id: found.id.clone(),
                version: found.version(),
                spec: Some(NodeSpec { availability: availability.into(), ..spec }),
            };
            client.control().await?.update_node(request).await?;
            say(&format!("{node}\n"));
        }
    }
    Ok(())
}

fn list(mut nodes: Vec<Node>, own: &str, leader: &str, output: Output) -> String {
    nodes.sort_by(|a, b| (a.hostname(), &a.id).cmp(&(b.hostname(), &b.id)));
    let mut listing = Listing::new(COLUMNS);
    for node in &nodes {
        let own = node.id == own;
        let manager = match (&node.manager, node.state()) {
            (None, _) => "",
            (Some(_), _) if node.id == leader => "Leader",
            (Some(_), NodeState::Ready) => "Reachable",
            (Some(_), NodeState::Down) => "Unreachable",
            (Some(_), NodeState::Unknown) => "Unknown",
        };
        let engine = node.description.as_ref().map(|d| d.version.clone()).unwrap_or_default();
        let cells = vec![
            if own { format!("{} *", node.id) } else { node.id.clone() },
            node.hostname().to_owned(),
            capitalized(inspect::state(node.state())),
            capitalized(inspect::availability(node.availability())),
            manager.to_owned(),
            engine,
        ];
        listing.push(
            &node.id,
            cells,
            vec![
                ("ID", node.id.clone().into()),
                ("Self", own.into()),
                ("Role", inspect::role(node.role()).into()),
                ("Address", node.data_path_addr.clone().into()),
            ],
        );
    }
    listing.render(output)
}

#[cfg(test)]
mod tests {
    use shoal_api::{ManagerStatus, NodeDescription, NodeStatus};

    use super::*;
    use crate::cli::listing::Format;

    fn node(id: char, hostname: &str, manager: bool, state: NodeState) -> Node {
        Node {
            id: id.to_string().repeat(25),
            description: Some(NodeDescription {
                hostname: hostname.into(),
                version: "0.1.0".into(),
                ..NodeDescription::default()
            }),
            status: Some(NodeStatus { state: state.into(), ..NodeStatus::default() }),
            manager: manager.then(ManagerStatus::default),
            ..Node::default()
        }
    }

    #[test]
    fn nodes_are_listed_as_docker_lists_them() {
        let nodes = vec![
            node('b', "n2", true, NodeState::Down),
            node('a', "n1", true, NodeState::Ready),
            node('c', "n3", false, NodeState::Ready),
        ];
        let output = Output { format: Format::Table, quiet: false };
        let expected = "\
ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION
aaaaaaaaaaaaaaaaaaaaaaaaa *   n1         Ready     Active         Leader           0.1.0
bbbbbbbbbbbbbbbbbbbbbbbbb     n2         Down      Active         Unreachable      0.1.0
ccccccccccccccccccccccccc     n3         Ready     Active                          0.1.0
";
        let own = "a".repeat(25);
        assert_eq!(list(nodes.clone(), &own, &own, output), expected);
        let output = Output { format: Format::Json, quiet: false };
        let json = list(nodes, &own, "", output);
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(first["ID"], own, "the star is for people");
        assert_eq!(first["Self"], true);
        assert_eq!(first["ManagerStatus"], "Reachable");
    }
}
