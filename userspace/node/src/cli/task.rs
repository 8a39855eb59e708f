//! `shoal task ls|inspect`, and the table of tasks that `service ps` and `node ps` print too.

use std::collections::BTreeMap;

use clap::Subcommand;
use shoal_api::{Node, Task, TaskState};

use crate::cli::client::Client;
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
#[derive(clap::Args, Clone, Copy)]
pub struct List {
    #[command(flatten)]
    output: Output,
    /// Show whole ids and errors.
    #[arg(long)]
    no_trunc: bool,
}

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
            let (tasks, (nodes, _)) = (client.tasks().await?, client.nodes().await?);
            say(&render(tasks, &nodes, list, now_ns()));
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

/// The table of tasks; older ones of a slot are drawn under the newest.
pub fn render(mut tasks: Vec<Task>, nodes: &[Node], list: List, now_ns: u64) -> String {
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
    listing.render(list.output)
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
    use shoal_api::{ContainerSpec, Meta, NodeDescription, TaskSpec, TaskStatus};

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
        let list = List { output, no_trunc: false };
        let expected = "\
ID             NAME        IMAGE      NODE      DESIRED STATE   CURRENT STATE           ERROR                       PORTS
cccccccccccc   web.2       rootfs:/   n1        Running         Running 5 seconds ago                               
bbbbbbbbbbbb    \\_ web.2   rootfs:/   n1        Shutdown        Failed 5 seconds ago    \"task: non-zero exit (1)\"   
aaaaaaaaaaaa   web.10      rootfs:/   n1        Running         Running 5 seconds ago                               
";
        assert_eq!(render(tasks, &[node], list, 6_000_000_000), expected);
    }

    #[test]
    fn a_long_error_is_cut_unless_asked_for() {
        let long = "No such image: rootfs:/a/very/long/path";
        assert_eq!(error(long, false), "\"No such image: rootfs:/a/very…\"");
        assert_eq!(error(long, true), format!("\"{long}\""));
    }
}
