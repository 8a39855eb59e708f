//! `shoal node update|promote|demote`: what the user wants of a node.

use shoal_api::{NodeAvailability, NodeRole, NodeSpec, UpdateNodeRequest};

use super::View;
use crate::cli::client::{Client, out_of_sequence};
use crate::cli::cluster::Availability;
use crate::cli::{Usage, say};

/// Flags and arguments of `shoal node update`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Whether it takes tasks: drain moves those that it has, pause only takes no new ones.
    #[arg(long, value_name = "active|pause|drain", value_parser = Availability::parse)]
    availability: Option<Availability>,
    /// Whether it is one of the managers.
    #[arg(long, value_name = "worker|manager", value_parser = role)]
    role: Option<NodeRole>,
    /// Set a label.
    #[arg(long, value_name = "KEY[=VALUE]")]
    label_add: Vec<String>,
    /// Take a label away.
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Id, name or `self`.
    #[arg(value_name = "NODE")]
    node: String,
}

/// Writers that take turns with others give up after so many lost races.
const ATTEMPTS: usize = 20;

fn role(word: &str) -> Result<NodeRole, String> {
    match word.to_lowercase().as_str() {
        "worker" => Ok(NodeRole::Worker),
        "manager" => Ok(NodeRole::Manager),
        _ => Err("use worker or manager".to_owned()),
    }
}

/// Changes one node.
///
/// # Errors
/// No flag at all, a label to take away that is not there, or what the daemon answered.
pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let Args { availability, role, label_add, label_rm, node } = &args;
    if availability.is_none() && role.is_none() && label_add.is_empty() && label_rm.is_empty() {
        let text =
            "\"shoal node update\" requires at least 1 flag.\nSee 'shoal node update --help'.";
        return Err(Usage(text.to_owned()).into());
    }
    change(client, node, |_, spec| merge(&args, spec).map(|()| true)).await?;
    say(&format!("{node}\n"));
    Ok(())
}

fn merge(args: &Args, spec: &mut NodeSpec) -> anyhow::Result<()> {
    if let Some(availability) = args.availability {
        spec.availability = NodeAvailability::from(availability).into();
    }
    if let Some(role) = args.role {
        spec.role = role.into();
    }
    for label in &args.label_add {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        if key.trim().is_empty() {
            return Err(Usage(format!("invalid label '{label}': empty name")).into());
        }
        spec.labels.insert(key.to_owned(), value.to_owned());
    }
    for key in &args.label_rm {
        let gone = spec.labels.remove(key);
        anyhow::ensure!(gone.is_some(), "key {key} doesn't exist in node's labels");
    }
    Ok(())
}

/// Makes nodes managers or workers, one after the other.
///
/// # Errors
/// The first that the daemon refused; those before it are changed.
pub(super) async fn change_role(
    client: &Client,
    words: &[String],
    role: NodeRole,
) -> anyhow::Result<()> {
    for word in words {
        let (mut id, mut changed) = (String::new(), false);
        change(client, word, |node, spec| {
            id = node.to_owned();
            changed = spec.role() != role;
            spec.role = role.into();
            Ok(changed)
        })
        .await?;
        say(&told(word, &id, role, changed));
    }
    Ok(())
}

fn told(word: &str, id: &str, role: NodeRole, changed: bool) -> String {
    match (role, changed) {
        (NodeRole::Manager, true) => format!("Node {word} promoted to a manager in the swarm.\n"),
        (NodeRole::Worker, true) => format!("Manager {word} demoted in the swarm.\n"),
        (NodeRole::Manager, false) => format!("Node {id} is already a manager.\n"),
        (NodeRole::Worker, false) => format!("Node {id} is already a worker.\n"),
    }
}

/// Compare and swap of a node's spec, again when another writer was faster. `edit` gets the node's
/// id and tells whether there is anything to write.
async fn change(
    client: &Client,
    word: &str,
    mut edit: impl FnMut(&str, &mut NodeSpec) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut control = client.control().await?;
    for attempt in 1.. {
        let view = View::read(client).await?;
        let node = view.find(word)?;
        let mut spec = node.spec.clone().unwrap_or_default();
        if !edit(&node.id, &mut spec)? {
            return Ok(());
        }
        let (node_id, version) = (node.id.clone(), node.version());
        let request = UpdateNodeRequest { node_id, version, spec: Some(spec) };
        match control.update_node(request).await {
            Ok(_) => return Ok(()),
            Err(status) if attempt < ATTEMPTS && out_of_sequence(&status) => {}
            Err(status) => return Err(status.into()),
        }
    }
    unreachable!("the last attempt returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away_and_the_rest_stays() {
        let mut spec = NodeSpec {
            name: "n".into(),
            labels: [("old".to_owned(), "1".to_owned())].into(),
            ..NodeSpec::default()
        };
        let args = Args {
            label_add: vec!["zone=a=b".into(), "ssd".into()],
            label_rm: vec!["old".into()],
            availability: Some(Availability::Drain),
            ..Args::default()
        };
        merge(&args, &mut spec).unwrap();
        let expected = [("zone", "a=b"), ("ssd", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(spec.labels, expected.into());
        assert_eq!((spec.name.as_str(), spec.availability()), ("n", NodeAvailability::Drain));
        let error = merge(&args, &mut spec).unwrap_err().to_string();
        assert_eq!(error, "key old doesn't exist in node's labels");
        let args = Args { label_add: vec!["=x".into()], ..Args::default() };
        let error = merge(&args, &mut spec).unwrap_err().to_string();
        assert_eq!(error, "invalid label '=x': empty name");
    }

    #[test]
    fn a_change_of_role_is_told_in_dockers_words() {
        let check = |role, changed, expected: &str| {
            assert_eq!(told("n1", "id1", role, changed), expected);
        };
        check(NodeRole::Manager, true, "Node n1 promoted to a manager in the swarm.\n");
        check(NodeRole::Worker, true, "Manager n1 demoted in the swarm.\n");
        check(NodeRole::Manager, false, "Node id1 is already a manager.\n");
        check(NodeRole::Worker, false, "Node id1 is already a worker.\n");
    }
}
