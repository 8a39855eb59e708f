//! `shoal node ls|inspect|update|promote|demote|rm|ps`. What is printed is in [`ls`], [`inspect`]
//! and [`pretty`], what is changed in [`update`].

mod inspect;
mod ls;
mod pretty;
mod update;

use clap::Subcommand;
use shoal_api::{InfoRequest, ListNodesResponse, Node, NodeRole, NodeState, RemoveNodeRequest};

use crate::cli::client::Client;
use crate::cli::resolve::{ResolveError, resolve};
use crate::cli::{say, sentence, task};

/// Verbs of `shoal node`.
#[derive(Subcommand)]
pub enum Verb {
    /// List nodes.
    #[command(visible_alias = "list")]
    Ls(ls::Args),
    /// List the tasks of nodes.
    Ps {
        #[command(flatten)]
        list: task::List,
        /// Ids or names; this node when there is none.
        #[arg(value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Show whole nodes.
    Inspect(inspect::Args),
    /// Change what a node is and may do.
    Update(update::Args),
    /// Make nodes managers.
    Promote {
        /// Ids, names or `self`.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Make managers workers.
    Demote {
        /// Ids, names or `self`.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Remove nodes; they are refused from then on.
    #[command(visible_alias = "remove")]
    Rm {
        /// Also a node that is not down.
        #[arg(short, long)]
        force: bool,
        /// Ids or names.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
}

/// Does what the verb says.
///
/// # Errors
/// What the daemon answered, or a word that means nothing.
pub async fn run(client: &Client, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Ls(args) => ls::run(client, args).await,
        Verb::Inspect(args) => inspect::run(client, args).await,
        Verb::Ps { list, nodes } => ps(client, &list, nodes).await,
        Verb::Update(args) => update::run(client, args).await,
        Verb::Promote { nodes } => update::change_role(client, &nodes, NodeRole::Manager).await,
        Verb::Demote { nodes } => update::change_role(client, &nodes, NodeRole::Worker).await,
        Verb::Rm { force, nodes } => rm(client, &nodes, force).await,
    }
}

/// The nodes, and which of them this one is.
struct View {
    nodes: Vec<Node>,
    leader: String,
    reachable: Vec<String>,
    own: String,
}

impl View {
    async fn read(client: &Client) -> anyhow::Result<Self> {
        let ListNodesResponse { nodes, leader_id, reachable } = client.list_nodes().await?;
        let own = client.local().await?.info(InfoRequest {}).await?.into_inner().node_id;
        Ok(Self { nodes, leader: leader_id, reachable, own })
    }

    /// The node that a word means.
    fn find(&self, word: &str) -> Result<&Node, ResolveError> {
        resolve(if word == "self" { &self.own } else { word }, &self.nodes)
    }

    /// How the leader reaches a manager; `None` for a worker.
    fn reachability(&self, node: &Node) -> Option<Reachability> {
        node.manager.as_ref()?;
        Some(match node.state() {
            _ if node.id == self.leader => Reachability::Leader,
            _ if self.reachable.contains(&node.id) => Reachability::Reachable,
            // A manager of an older release does not say whom it reaches.
            NodeState::Ready if self.reachable.is_empty() => Reachability::Reachable,
            NodeState::Unknown if self.reachable.is_empty() => Reachability::Unknown,
            _ => Reachability::Unreachable,
        })
    }
}

/// How a manager stands with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reachability {
    Leader,
    Reachable,
    Unreachable,
    Unknown,
}

impl Reachability {
    /// Docker's word; the leader reaches itself.
    fn word(self) -> &'static str {
        match self {
            Self::Leader | Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
        }
    }
}

async fn ps(client: &Client, list: &task::List, mut words: Vec<String>) -> anyhow::Result<()> {
    if words.is_empty() {
        words.push("self".to_owned());
    }
    let view = View::read(client).await?;
    let found: Vec<_> = words.iter().map(|word| view.find(word)).collect();
    let ids: Vec<&str> = found.iter().flatten().map(|node| node.id.as_str()).collect();
    if !ids.is_empty() {
        let mut tasks = client.tasks().await?;
        tasks.retain(|task| ids.contains(&task.node_id.as_str()));
        say(&task::show(client, tasks, &view.nodes, list).await?);
    }
    for node in found {
        node?;
    }
    Ok(())
}

/// Removes what can be removed; what cannot is told at the end.
async fn rm(client: &Client, words: &[String], force: bool) -> anyhow::Result<()> {
    let mut control = client.control().await?;
    let nodes = client.list_nodes().await?.nodes;
    let mut refused: Vec<String> = Vec::new();
    for word in words {
        let node_id = match resolve(word, &nodes) {
            Ok(node) => node.id.clone(),
            Err(error) => {
                refused.push(error.to_string());
                continue;
            }
        };
        match control.remove_node(RemoveNodeRequest { node_id, force }).await {
            Ok(_) => say(&format!("{word}\n")),
            Err(status) => refused.push(sentence(&status.into())),
        }
    }
    anyhow::ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use shoal_api::{ManagerStatus, NodeStatus};

    use super::*;

    #[test]
    fn a_manager_is_reachable_when_the_leader_says_so() {
        let node = |id: &str, state: NodeState| Node {
            id: id.into(),
            manager: Some(ManagerStatus::default()),
            status: Some(NodeStatus { state: state.into(), ..NodeStatus::default() }),
            ..Node::default()
        };
        let mut view = View {
            nodes: Vec::new(),
            leader: "a".into(),
            reachable: vec!["a".into(), "b".into()],
            own: "a".into(),
        };
        assert_eq!(view.reachability(&node("a", NodeState::Down)), Some(Reachability::Leader));
        assert_eq!(view.reachability(&node("b", NodeState::Down)), Some(Reachability::Reachable));
        assert_eq!(
            view.reachability(&node("c", NodeState::Ready)),
            Some(Reachability::Unreachable)
        );
        let worker = Node { manager: None, ..node("b", NodeState::Ready) };
        assert_eq!(view.reachability(&worker), None);
        view.reachable.clear();
        assert_eq!(view.reachability(&node("c", NodeState::Ready)), Some(Reachability::Reachable));
        assert_eq!(view.reachability(&node("c", NodeState::Unknown)), Some(Reachability::Unknown));
    }
}
