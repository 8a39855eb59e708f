//! `shoal node ls`.

use std::cmp::Ordering;

use shoal_api::Node;

use super::{Reachability, View};
use crate::cli::client::Client;
use crate::cli::cluster::tls::{self, Roots};
use crate::cli::filter::{Filter, Filters};
use crate::cli::human::capitalized;
use crate::cli::inspect::{availability, role, state};
use crate::cli::listing::{Format, Listing, Output};
use crate::cli::say;

/// Flags of `shoal node ls`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
    /// Show only nodes with this: id, name (both by their beginning), label, node.label,
    /// membership=accepted|pending or role=worker|manager.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = Filter::parse)]
    filter: Vec<Filter>,
}

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("HOSTNAME", "Hostname"),
    ("STATUS", "Status"),
    ("AVAILABILITY", "Availability"),
    ("MANAGER STATUS", "ManagerStatus"),
    ("ENGINE VERSION", "EngineVersion"),
];

const FILTERS: &[&str] = &["id", "label", "membership", "name", "node.label", "role"];

/// Prints the list.
///
/// # Errors
/// A filter that there is not, or what the daemon answered.
pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let filters = Filters::new(&args.filter, FILTERS)?;
    filters.words("role", &["worker", "manager"])?;
    filters.words("membership", &["accepted", "pending"])?;
    let view = View::read(client).await?;
    // Only asked for where it is shown; that it cannot be had makes it unknown, not the list.
    let roots = match (&args.output.format, args.output.quiet) {
        (Format::Table, _) | (_, true) => Roots::default(),
        _ => client.cluster().await.map(|cluster| Roots::of(&cluster)).unwrap_or_default(),
    };
    say(&render(view, &filters, &roots, &args.output));
    Ok(())
}

fn render(mut view: View, filters: &Filters<'_>, roots: &Roots, output: &Output) -> String {
    let mut nodes = std::mem::take(&mut view.nodes);
    nodes.retain(|node| is_wanted(node, filters));
    nodes.sort_by(|a, b| natural(a.hostname(), b.hostname()).then_with(|| a.id.cmp(&b.id)));
    let mut listing = Listing::new(COLUMNS);
    for node in &nodes {
        let own = node.id == view.own;
        let reachability = view.reachability(node);
        let manager = match reachability {
            None => String::new(),
            Some(Reachability::Leader) => "Leader".to_owned(),
            Some(other) => capitalized(other.word()),
        };
        let engine = node.description.as_ref().map(|d| d.version.clone()).unwrap_or_default();
        let cells = vec![
            if own { format!("{} *", node.id) } else { node.id.clone() },
            node.hostname().to_owned(),
            capitalized(state(node.state())),
            capitalized(availability(node.availability())),
            manager,
            engine,
        ];
        listing.push(
            &node.id,
            cells,
            vec![
                ("ID", node.id.clone().into()),
                ("Self", own.into()),
                ("Role", role(node.role()).into()),
                ("Address", node.data_path_addr.clone().into()),
                ("TLSStatus", tls::status(roots.is_current(node)).into()),
            ],
        );
    }
    listing.render(output)
}

fn is_wanted(node: &Node, filters: &Filters<'_>) -> bool {
    let none = std::collections::BTreeMap::new();
    filters.any("id", |id| node.id.starts_with(id))
        && filters.any("name", |name| node.hostname().starts_with(name))
        && filters.any("role", |wanted| role(node.role()) == wanted)
        // A node is accepted by its token: nobody waits for a person.
        && filters.any("membership", |wanted| wanted == "accepted")
        && filters.labels("node.label", node.spec.as_ref().map_or(&none, |spec| &spec.labels))
        // Labels of the engine: this one has none.
        && filters.labels("label", &none)
}

/// `n2` before `n10`: runs of digits are compared as numbers, as Docker sorts hosts.
fn natural(mut a: &str, mut b: &str) -> Ordering {
    fn digits(text: &str) -> (&str, &str) {
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
    }
    loop {
        let ((a_digits, a_rest), (b_digits, b_rest)) = (digits(a), digits(b));
        if !a_digits.is_empty() && !b_digits.is_empty() {
            let (a_number, b_number) =
                (a_digits.trim_start_matches('0'), b_digits.trim_start_matches('0'));
            let order = a_number.len().cmp(&b_number.len()).then_with(|| a_number.cmp(b_number));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (a_rest, b_rest);
            continue;
        }
        let (mut a_chars, mut b_chars) = (a.chars(), b.chars());
        match (a_chars.next(), b_chars.next()) {
            (None, None) => return Ordering::Equal,
            (a_char, b_char) if a_char != b_char => return a_char.cmp(&b_char),
            _ => (a, b) = (a_chars.as_str(), b_chars.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::{ManagerStatus, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus};

    use super::*;
    use crate::cli::cluster::tls::tests::{cluster, under};

    fn node(id: char, hostname: &str, role: NodeRole, state: NodeState) -> Node {
        Node {
            id: id.to_string().repeat(25),
            spec: Some(NodeSpec {
                role: role.into(),
                labels: [("zone".to_owned(), id.to_string())].into(),
                ..NodeSpec::default()
            }),
            description: Some(NodeDescription {
                hostname: hostname.into(),
                version: "0.1.0".into(),
                ..NodeDescription::default()
            }),
            status: Some(NodeStatus { state: state.into(), ..NodeStatus::default() }),
            manager: (role == NodeRole::Manager).then(ManagerStatus::default),
            ..Node::default()
        }
    }

    fn view() -> View {
        let id = |id: char| id.to_string().repeat(25);
        View {
            nodes: vec![
                node('b', "n10", NodeRole::Manager, NodeState::Down),
                node('a', "n1", NodeRole::Manager, NodeState::Ready),
                node('c', "n9", NodeRole::Worker, NodeState::Ready),
                node('d', "n2", NodeRole::Manager, NodeState::Ready),
            ],
            leader: id('d'),
            reachable: vec![id('a'), id('d')],
            own: id('a'),
        }
    }

    fn list(filters: &[&str], format: &str) -> String {
        let filters: Vec<Filter> = filters.iter().map(|f| Filter::parse(f).unwrap()).collect();
        let filters = Filters::new(&filters, FILTERS).unwrap();
        let output = Output { format: format.parse().unwrap(), quiet: false };
        render(view(), &filters, &Roots::default(), &output)
    }

    #[test]
    fn nodes_are_listed_as_docker_lists_them() {
        let expected = "\
ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION
aaaaaaaaaaaaaaaaaaaaaaaaa *   n1         Ready     Active         Reachable        0.1.0
ddddddddddddddddddddddddd     n2         Ready     Active         Leader           0.1.0
ccccccccccccccccccccccccc     n9         Ready     Active                          0.1.0
bbbbbbbbbbbbbbbbbbbbbbbbb     n10        Down      Active         Unreachable      0.1.0
";
        assert_eq!(list(&[], "table"), expected);
    }

    #[test]
    fn a_program_gets_dockers_keys() {
        let json = list(&["name=n1"], "json");
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        let expected = serde_json::json!({
            "Address": "",
            "Availability": "Active",
            "EngineVersion": "0.1.0",
            "Hostname": "n1",
            "ID": "a".repeat(25),
            "ManagerStatus": "Reachable",
            "Role": "manager",
            "Self": true,
            "Status": "Ready",
            "TLSStatus": "Unknown",
        });
        assert_eq!(first, expected);
    }

    #[test]
    fn filters_choose_nodes() {
        let check = |filters: &[&str], expected: &str| {
            assert_eq!(list(filters, "{{.Hostname}}"), expected, "{filters:?}");
        };
        check(&["role=worker"], "n9\n");
        check(&["role=manager", "id=bb"], "n10\n");
        check(&["name=n1"], "n1\nn10\n");
        check(&["node.label=zone=d"], "n2\n");
        check(&["node.label=zone", "name=n9", "name=n2"], "n2\nn9\n");
        check(&["label=zone"], "");
        check(&["membership=accepted", "role=worker"], "n9\n");
        check(&["membership=pending"], "");
    }

    #[test]
    fn the_tls_status_follows_the_root_that_is_wanted() {
        let status = |node: Node| {
            let view = View {
                nodes: vec![node],
                leader: String::new(),
                reachable: Vec::new(),
                own: String::new(),
            };
            let output = Output { format: "{{.TLSStatus}}".parse().unwrap(), quiet: false };
            let roots = Roots::of(&cluster(Some("bb")));
            render(view, &Filters::new(&[], FILTERS).unwrap(), &roots, &output)
        };
        assert_eq!(status(under("bb")), "Ready\n");
        assert_eq!(status(under("aa")), "Needs Rotation\n");
    }

    #[test]
    fn hosts_are_sorted_by_their_numbers() {
        let mut names = ["n10", "n9", "n", "m20", "n09a", "n1-2", "n1-10"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["m20", "n", "n1-2", "n1-10", "n9", "n09a", "n10"]);
    }
}
