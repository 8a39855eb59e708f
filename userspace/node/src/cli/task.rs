//! `shoal task ls|inspect`, and the table of tasks that `service ps` and `node ps` print too.

use std::collections::BTreeMap;

use clap::Subcommand;
use shoal_api::{Node, Service, Task, TaskState};

use crate::cli::client::Client;
use crate::cli::filter::{Filter, Filters};
use crate::cli::human::{ago, capitalized, now_ns};
use crate::cli::listing::{Listing, Output, short};
use crate::cli::{inspect, say};

/// Verbs of `shoal task`.
#[derive(Subcommand)]
pub enum Verb {
    /// List the tasks of all services.
    #[command(visible_alias = "list")]
    Ls(List),
    /// Show whole tasks as JSON.
    Inspect {
        /// Ids or names.
        #[arg(required = true, value_name = "TASK")]
        tasks: Vec<String>,
    },
}

/// How tasks are listed.
#[derive(clap::Args, Clone)]
pub struct List {
    #[command(flatten)]
    output: Output,
    /// Show whole ids and errors.
    #[arg(long)]
    no_trunc: bool,
    /// Show only tasks with this: id, name (both by their beginning), node, label (of the service)
    /// or desired-state=running|shutdown|accepted.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = Filter::parse)]
    filter: Vec<Filter>,
}

const FILTERS: &[&str] = &["desired-state", "id", "label", "name", "node"];

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("NAME", "Name"),
    ("IMAGE", "Image"),
    ("NODE", "Node"),
    ("DESIRED STATE", "DesiredState"),
    ("CURRENT STATE", "CurrentState"),
    ("ERROR", "Error"),
    ("PORTS", "Ports"),
];

/// Errors are cut to this many characters in a table, as Docker does.
const ERROR_LENGTH_MAX: usize = 30;

/// Does what the verb says.
///
/// # Errors
/// What the daemon answered, or a word that means nothing.
pub async fn run(client: &Client, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Inspect { tasks: words } => {
            let mut tasks = client.tasks().await?;
            sort(&mut tasks);
            inspect::print(&words, &tasks)
        }
        Verb::Ls(list) => {
            let (tasks, nodes) = (client.tasks().await?, client.nodes().await?);
            say(&show(client, tasks, &nodes, &list).await?);
            Ok(())
        }
    }
}

/// By service and slot, the newest of a slot first.
fn sort(tasks: &mut [Task]) {
    let key = |task: &Task| {
        let created = task.meta.as_ref().map_or(0, |meta| meta.created_at_ns);
        (task.service_name.clone(), task.slot, std::cmp::Reverse((created, task.version())))
    };
    tasks.sort_by_cached_key(key);
}

/// The table of those tasks that the user wants to see.
///
/// # Errors
/// A filter that there is not, or what the daemon answered.
pub async fn show(
    client: &Client,
    mut tasks: Vec<Task>,
    nodes: &[Node],
    list: &List,
) -> anyhow::Result<String> {
    let filters = Filters::new(&list.filter, FILTERS)?;
    filters.words("desired-state", &["running", "shutdown", "accepted"])?;
    // Labels are the service's.
    let services = if filters.has("label") { client.services().await? } else { Vec::new() };
    tasks.retain(|task| is_wanted(task, &filters, nodes, &services));
    Ok(render(tasks, nodes, list, now_ns()))
}

fn is_wanted(task: &Task, filters: &Filters<'_>, nodes: &[Node], services: &[Service]) -> bool {
    let service = services.iter().find(|service| service.id == task.service_id);
    let spec = service.and_then(|service| service.spec.as_ref());
    let none = BTreeMap::new();
    let node = nodes.iter().find(|node| node.id == task.node_id);
    filters.any("id", |id| task.id.starts_with(id))
        && filters.any("name", |name| task.name().starts_with(name))
        && filters.any("desired-state", |state| task.desired_state().word() == state)
        && filters.any("node", |word| {
            task.node_id == word || node.is_some_and(|node| node.hostname() == word)
        })
        && filters.labels("label", spec.map_or(&none, |spec| &spec.labels))
}

/// The table of tasks; older ones of a slot are drawn under the newest.
fn render(mut tasks: Vec<Task>, nodes: &[Node], list: &List, now_ns: u64) -> String {
    sort(&mut tasks);
    let hosts: BTreeMap<&str, &str> =
        nodes.iter().map(|node| (node.id.as_str(), node.hostname())).collect();
    let mut listing = Listing::new(COLUMNS);
    let mut previous = None;
    for task in &tasks {
        let slot = (&task.service_id, task.slot);
        let indent = if previous.replace(slot) == Some(slot) { " \\_ " } else { "" };
        let status = task.status.clone().unwrap_or_default();
        let id = if list.no_trunc { task.id.clone() } else { short(&task.id) };
        let container = task.spec.as_ref().and_then(|spec| spec.container.as_ref());
        let node = hosts.get(task.node_id.as_str()).copied().unwrap_or(&task.node_id);
        let state = capitalized(task.state().word());
        let cells = vec![
            id.clone(),
            format!("{indent}{}", task.name()),
            container.map(|spec| spec.image.clone()).unwrap_or_default(),
            node.to_owned(),
            capitalized(task.desired_state().word()),
            format!("{state} {}", ago(status.timestamp_ns, now_ns)),
            error(&status.err, list.no_trunc),
            String::new(),
        ];
        let extra = vec![
            // What a script asks for, without the words around it.
            ("State", task.state().word().into()),
            ("NodeID", task.node_id.clone().into()),
            ("FullID", task.id.clone().into()),
            ("Slot", task.slot.into()),
            ("PID", status.pid.into()),
        ];
        listing.push(&id, cells, extra);
    }
    listing.render(&list.output)
}

fn error(err: &str, no_trunc: bool) -> String {
    // A table has one line per task.
    let err = err.replace('\n', " ");
    match err.chars().count() {
        0 => String::new(),
        length if length > ERROR_LENGTH_MAX && !no_trunc => {
            let start: String = err.chars().take(ERROR_LENGTH_MAX - 1).collect();
            format!("\"{start}…\"")
        }
        _ => format!("\"{err}\""),
    }
}

/// Whether the task counts as one of the replicas that run.
pub fn runs(task: &Task) -> bool {
    task.state() == TaskState::Running && task.desired_state() <= TaskState::Running
}

#[cfg(test)]
mod tests {
    use shoal_api::{ContainerSpec, Meta, NodeDescription, ServiceSpec, TaskSpec, TaskStatus};

    use super::*;
    use crate::cli::listing::Format;

    fn task(id: &str, slot: u64, created: u64, state: TaskState, err: &str) -> Task {
        let container = ContainerSpec { image: "rootfs:/".into(), ..ContainerSpec::default() };
        let desired = if state.is_terminal() { TaskState::Shutdown } else { TaskState::Running };
        Task {
            id: id.into(),
            service_id: "s".into(),
            service_name: "web".into(),
            slot,
            node_id: "node1".into(),
            meta: Some(Meta { created_at_ns: created, ..Meta::default() }),
            spec: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
            status: Some(TaskStatus {
                state: state.into(),
                timestamp_ns: 1_000_000_000,
                err: err.into(),
                ..TaskStatus::default()
            }),
            desired_state: desired.into(),
            ..Task::default()
        }
    }

    #[test]
    fn older_tasks_of_a_slot_are_drawn_under_the_newest() {
        let tasks = vec![
            task("aaaaaaaaaaaaaaa", 10, 5, TaskState::Running, ""),
            task("bbbbbbbbbbbbbbb", 2, 5, TaskState::Failed, "task: non-zero exit (1)"),
            task("ccccccccccccccc", 2, 6, TaskState::Running, ""),
        ];
        let node = Node {
            id: "node1".into(),
            description: Some(NodeDescription { hostname: "n1".into(), ..Default::default() }),
            ..Node::default()
        };
        let output = Output { format: Format::Table, quiet: false };
        let list = List { output, no_trunc: false, filter: Vec::new() };
        let expected = "\
ID             NAME        IMAGE      NODE      DESIRED STATE   CURRENT STATE           ERROR                       PORTS
cccccccccccc   web.2       rootfs:/   n1        Running         Running 5 seconds ago                               
bbbbbbbbbbbb    \\_ web.2   rootfs:/   n1        Shutdown        Failed 5 seconds ago    \"task: non-zero exit (1)\"   
aaaaaaaaaaaa   web.10      rootfs:/   n1        Running         Running 5 seconds ago                               
";
        assert_eq!(render(tasks, &[node], &list, 6_000_000_000), expected);
    }

    #[test]
    fn filters_choose_tasks() {
        let tasks =
            [task("aaa", 1, 5, TaskState::Running, ""), task("bbb", 2, 5, TaskState::Failed, "")];
        let node = Node {
            id: "node1".into(),
            description: Some(NodeDescription { hostname: "n1".into(), ..Default::default() }),
            ..Node::default()
        };
        let service = Service {
            id: "s".into(),
            spec: Some(ServiceSpec {
                labels: [("tier".to_owned(), "front".to_owned())].into(),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        let check = |given: &[&str], expected: &[&str]| {
            let given: Vec<Filter> = given.iter().map(|f| Filter::parse(f).unwrap()).collect();
            let filters = Filters::new(&given, FILTERS).unwrap();
            let (nodes, services) = (std::slice::from_ref(&node), std::slice::from_ref(&service));
            let ids: Vec<&str> = tasks
                .iter()
                .filter(|task| is_wanted(task, &filters, nodes, services))
                .map(|task| task.id.as_str())
                .collect();
            assert_eq!(ids, expected, "{given:?}");
        };
        check(&[], &["aaa", "bbb"]);
        check(&["id=a"], &["aaa"]);
        check(&["name=web.2"], &["bbb"]);
        check(&["desired-state=running"], &["aaa"]);
        check(&["node=n1", "desired-state=shutdown"], &["bbb"]);
        check(&["node=n2"], &[]);
        check(&["label=tier=front"], &["aaa", "bbb"]);
        check(&["label=tier=back"], &[]);
    }

    #[test]
    fn a_long_error_is_cut_unless_asked_for() {
        let long = "No such image: rootfs:/a/very/long/path";
        assert_eq!(error(long, false), "\"No such image: rootfs:/a/very…\"");
        assert_eq!(error(long, true), format!("\"{long}\""));
    }
}
