//! `shoal service ls`.

use std::collections::BTreeSet;

use shoal_api::{Node, NodeState, Service, Task};

use crate::cli::client::Client;
use crate::cli::listing::{Listing, Output, short};
use crate::cli::{publish, say, task};

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("NAME", "Name"),
    ("MODE", "Mode"),
    ("REPLICAS", "Replicas"),
    ("IMAGE", "Image"),
    ("PORTS", "Ports"),
];

/// Prints the table.
///
/// # Errors
/// What the daemon answered.
pub async fn run(client: &Client, output: Output) -> anyhow::Result<()> {
    let services = client.services().await?;
    let (tasks, nodes) = (client.tasks().await?, client.nodes().await?);
    say(&render(services, &tasks, &nodes, &output));
    Ok(())
}

fn render(mut services: Vec<Service>, tasks: &[Task], nodes: &[Node], output: &Output) -> String {
    services.sort_by(|a, b| a.name().cmp(b.name()));
    // What a lost node last said of its tasks is not known to hold.
    let down: BTreeSet<&str> = nodes
        .iter()
        .filter(|node| node.state() == NodeState::Down)
        .map(|node| node.id.as_str())
        .collect();
    let mut listing = Listing::new(COLUMNS);
    for service in &services {
        let spec = service.spec.clone().unwrap_or_default();
        let running = tasks
            .iter()
            .filter(|task| task.service_id == service.id && task::runs(task))
            .filter(|task| !down.contains(task.node_id.as_str()))
            .count();
        let container = spec.task.and_then(|task| task.container).unwrap_or_default();
        let cells = vec![
            short(&service.id),
            spec.name,
            "replicated".to_owned(),
            format!("{running}/{}", spec.replicas),
            container.image,
            publish::show(&service.ports),
        ];
        listing.push(&short(&service.id), cells, vec![("FullID", service.id.clone().into())]);
    }
    listing.render(output)
}

#[cfg(test)]
mod tests {
    use shoal_api::{
        ContainerSpec, NodeStatus, PortConfig, ServiceSpec, TaskSpec, TaskState, TaskStatus,
    };

    use super::*;
    use crate::cli::listing::Format;

    #[test]
    fn running_tasks_on_nodes_that_are_not_down_count() {
        let container = ContainerSpec { image: "rootfs:/".into(), ..ContainerSpec::default() };
        let service = Service {
            id: "s".repeat(25),
            spec: Some(ServiceSpec {
                name: "web".into(),
                replicas: 3,
                task: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
                ..ServiceSpec::default()
            }),
            ports: vec![PortConfig { target_port: 80, published_port: 8080, ..Default::default() }],
            ..Service::default()
        };
        let task = |node: &str, state: TaskState| Task {
            service_id: "s".repeat(25),
            node_id: node.into(),
            status: Some(TaskStatus { state: state.into(), ..TaskStatus::default() }),
            desired_state: TaskState::Running.into(),
            ..Task::default()
        };
        let tasks = [
            task("n1", TaskState::Running),
            task("n2", TaskState::Running),
            task("n1", TaskState::Starting),
        ];
        let down = Node {
            id: "n2".into(),
            status: Some(NodeStatus { state: NodeState::Down.into(), ..NodeStatus::default() }),
            ..Node::default()
        };
        let output = Output { format: Format::Table, quiet: false };
        assert_eq!(
            render(vec![service], &tasks, &[down], &output),
            "ID             NAME      MODE         REPLICAS   IMAGE      PORTS\n\
             ssssssssssss   web       replicated   1/3        rootfs:/   *:8080->80/tcp\n"
        );
    }
}
