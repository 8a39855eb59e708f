//! Whether a service is as its spec wants it, on every node, and the wait until it is.
//!
//! Converged is more than "all tasks run": every ready node's kernel must hold the endpoints of
//! those tasks, so that a client may ask any node from then on. The judgement is a plain function
//! of what the managers answered; the wait asks again until it is good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_api::{Node, NodeState, RemoveServiceRequest, Service, StatusResponse, Task, TaskState};
use tonic::Code;

use super::progress::Progress;
use crate::cli::client::Client;
use crate::cli::task::runs;

/// How often the managers are asked. A cluster converges in a few hundred milliseconds; an answer
/// costs well under one.
const POLL: Duration = Duration::from_millis(50);
/// How long the managers may be without an answer, as while they elect a leader.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A new service: when no task can even be prepared, it is taken back.
    Creation {
        /// Without progress.
        quiet: bool,
    },
    /// A service that was there: it stays.
    Change,
}

/// One slot, as the progress shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Replica number.
    pub slot: u64,
    /// Where its newest task is.
    pub state: TaskState,
    /// Why it waits or why the one before it ended; empty when all is well.
    pub err: String,
}

/// What the managers answered, together.
pub struct Picture<'a> {
    /// The service as it is now.
    pub service: &'a Service,
    /// All tasks of it.
    pub tasks: &'a [Task],
    /// All nodes.
    pub nodes: &'a [Node],
    /// How far every node's kernel is.
    pub status: &'a StatusResponse,
}

/// How far a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Tasks that run.
    pub running: u64,
    /// Tasks that the spec wants.
    pub wanted: u64,
    /// Each slot that the spec wants.
    pub slots: Vec<SlotState>,
    /// Ready nodes whose kernel does not hold the newest tasks yet.
    pub behind: usize,
    /// Set when no slot's task could even be prepared and none ever ran: why.
    pub refused: Option<String>,
}

impl Judgement {
    /// Tasks run and every ready node knows.
    pub fn converged(&self) -> bool {
        self.running == self.wanted && self.behind == 0
    }
}

/// Judges one picture.
pub fn judge(picture: &Picture<'_>) -> Judgement {
    let Picture { service, tasks, nodes, .. } = picture;
    let wanted = service.spec.as_ref().map_or(0, |spec| spec.replicas);
    let down: BTreeSet<&str> = nodes
        .iter()
        .filter(|node| node.state() == NodeState::Down)
        .map(|node| node.id.as_str())
        .collect();
    let mut by_slot: BTreeMap<u64, Vec<&Task>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.service_id == service.id) {
        by_slot.entry(task.slot).or_default().push(task);
    }
    for slot in by_slot.values_mut() {
        slot.sort_by_key(|task| std::cmp::Reverse((created_at(task), task.version())));
    }
    // Slots that are going away, as after scaling down, are not shown and not waited for.
    let live = |tasks: &Vec<&Task>| tasks.iter().any(|t| t.desired_state() <= TaskState::Running);
    let current = |task: &Task| {
        runs(task)
            && task.spec_version == service.spec_version
            && !down.contains(task.node_id.as_str())
    };
    let running = by_slot.values().filter(|tasks| tasks.iter().any(|task| current(task))).count();
    let surplus = by_slot.values().filter(|tasks| live(tasks)).count() as u64 > wanted;
    let slots = by_slot.iter().filter(|(_, tasks)| live(tasks)).map(|(&slot, tasks)| {
        let newest = tasks[0];
        let errs = tasks.iter().filter_map(|task| task.status.as_ref()).map(|status| &status.err);
        let err = match newest.state() {
            TaskState::Running => String::new(),
            _ => errs.into_iter().find(|err| !err.is_empty()).cloned().unwrap_or_default(),
        };
        SlotState { slot, state: newest.state(), err }
    });
    let running = running as u64;
    Judgement {
        // More than wanted is not there yet either.
        running: if surplus { running.min(wanted.saturating_sub(1)) } else { running },
        wanted,
        slots: slots.collect(),
        behind: behind(picture),
        refused: refused(wanted, &by_slot),
    }
}

/// Ready nodes whose kernel does not hold what concerns them of the service's newest change.
///
/// A node is done when it holds that index, or, where nothing of the change concerned it, all that
/// does concern it.
fn behind(picture: &Picture<'_>) -> usize {
    let Picture { service, tasks, nodes, status } = picture;
    let versions = tasks.iter().filter(|task| task.service_id == service.id).map(Task::version);
    let index = versions.chain([service.version()]).max().unwrap_or(0);
    let ready = nodes.iter().filter(|node| node.state() == NodeState::Ready);
    let done = |node: &&Node| {
        let progress = status.nodes.iter().find(|progress| progress.node_id == node.id);
        progress.is_some_and(|progress| {
            let all = progress.held_index >= progress.wanted_index;
            progress.held_index >= index || (all && status.applied_index >= index)
        })
    };
    ready.filter(|node| !done(node)).count()
}

fn refused(wanted: u64, by_slot: &BTreeMap<u64, Vec<&Task>>) -> Option<String> {
    let tasks = || by_slot.values().flatten();
    let started =
        |task: &&&Task| task.state() >= TaskState::Starting && task.state() != TaskState::Rejected;
    let rejected = |tasks: &&Vec<&Task>| tasks.iter().any(|t| t.state() == TaskState::Rejected);
    let slots = by_slot.values().filter(rejected).count() as u64;
    if wanted == 0 || slots < wanted || tasks().any(|task| started(&task)) {
        return None;
    }
    let mut errs = tasks().filter(|task| task.state() == TaskState::Rejected);
    errs.find_map(|task| task.status.as_ref().map(|status| status.err.clone()))
}

fn created_at(task: &Task) -> u64 {
    task.meta.as_ref().map_or(0, |meta| meta.created_at_ns)
}

/// Waits until the service has converged and shows how far it is.
///
/// Ctrl-C ends the waiting and not the change.
///
/// # Errors
/// The service went away, no task of a new one can run, or the managers stopped to answer.
pub async fn wait(client: &Client, service: Service, goal: Goal) -> anyhow::Result<()> {
    let mut progress = Progress::new(goal == Goal::Creation { quiet: true });
    tokio::select! {
        outcome = follow(client, &service, goal, &mut progress) => outcome,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            progress.stop();
            eprintln!(
                "Operation continuing in background.\n\
                 Use `shoal service ps {}` to check progress.",
                service.name()
            );
            Ok(())
        }
    }
}

async fn follow(
    client: &Client,
    service: &Service,
    goal: Goal,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answered = Instant::now();
    loop {
        ticks.tick().await;
        let judgement = match ask(client, &service.id).await {
            Ok(Some(judgement)) => judgement,
            Ok(None) => anyhow::bail!("service {} was removed", service.name()),
            Err(error) if passes(&error) && answered.elapsed() < PATIENCE => continue,
            Err(error) => return Err(error),
        };
        answered = Instant::now();
        progress.show(&judgement);
        if judgement.converged() {
            progress.converged();
            return Ok(());
        }
        if let (Goal::Creation { .. }, Some(reason)) = (goal, &judgement.refused) {
            progress.stop();
            let request = RemoveServiceRequest { service_id: service.id.clone() };
            client.control().await?.remove_service(request).await?;
            anyhow::bail!(
                "service {} was not created, since none of its tasks can run: {reason}",
                service.name()
            );
        }
    }
}

/// Managers that elect a leader have one again soon.
fn passes(error: &anyhow::Error) -> bool {
    error.downcast_ref::<tonic::Status>().is_some_and(|status| {
        matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled
        )
    })
}

async fn ask(client: &Client, service_id: &str) -> anyhow::Result<Option<Judgement>> {
    let services = client.services().await?;
    let Some(service) = services.iter().find(|service| service.id == service_id) else {
        return Ok(None);
    };
    let mut tasks = client.tasks().await?;
    tasks.retain(|task| task.service_id == service_id);
    let nodes = client.nodes().await?;
    // Last, so that it is not older than the tasks that it is compared with.
    let status = client.status().await?;
    Ok(Some(judge(&Picture { service, tasks: &tasks, nodes: &nodes, status: &status })))
}

#[cfg(test)]
mod tests {
    use shoal_api::{Meta, NodeProgress, NodeStatus, ServiceSpec, TaskStatus};

    use super::*;

    struct World {
        service: Service,
        tasks: Vec<Task>,
        nodes: Vec<Node>,
        status: StatusResponse,
    }

    impl World {
        /// Two ready nodes that hold index 20, a service of `replicas` that was written at 10.
        fn new(replicas: u64) -> Self {
            let node = |id: &str| Node {
                id: id.into(),
                status: Some(NodeStatus {
                    state: NodeState::Ready.into(),
                    ..NodeStatus::default()
                }),
                ..Node::default()
            };
            let progress =
                |id: &str| NodeProgress { node_id: id.into(), held_index: 20, wanted_index: 20 };
            Self {
                service: Service {
                    id: "s".into(),
                    meta: Some(Meta { version: 10, ..Meta::default() }),
                    spec: Some(ServiceSpec { replicas, ..ServiceSpec::default() }),
                    spec_version: 10,
                    ..Service::default()
                },
                tasks: Vec::new(),
                nodes: vec![node("n1"), node("n2")],
                status: StatusResponse {
                    applied_index: 20,
                    nodes: vec![progress("n1"), progress("n2")],
                    ..StatusResponse::default()
                },
            }
        }

        fn task(mut self, slot: u64, version: u64, state: TaskState, err: &str) -> Self {
            let ended = state.is_terminal();
            self.tasks.push(Task {
                id: format!("t{}", self.tasks.len()),
                service_id: "s".into(),
                slot,
                node_id: "n1".into(),
                meta: Some(Meta { version, created_at_ns: version, ..Meta::default() }),
                status: Some(TaskStatus {
                    state: state.into(),
                    err: err.into(),
                    ..TaskStatus::default()
                }),
                desired_state: if ended { TaskState::Shutdown } else { TaskState::Running }.into(),
                spec_version: 10,
                ..Task::default()
            });
            self
        }

        fn judge(&self) -> Judgement {
            judge(&Picture {
                service: &self.service,
                tasks: &self.tasks,
                nodes: &self.nodes,
                status: &self.status,
            })
        }
    }

    fn running(replicas: u64) -> World {
        (1..=replicas)
            .fold(World::new(replicas), |world, slot| world.task(slot, 20, TaskState::Running, ""))
    }

    #[test]
    fn a_service_has_converged_when_its_tasks_run_and_every_node_knows() {
        assert!(running(3).judge().converged());
        assert!(World::new(0).judge().converged());
    }

    #[test]
    fn a_ready_node_that_is_behind_holds_it_back_and_a_lost_one_does_not() {
        let mut world = running(2);
        world.status.nodes[1] =
            NodeProgress { node_id: "n2".into(), held_index: 19, wanted_index: 20 };
        assert_eq!(world.judge().behind, 1);
        assert!(!world.judge().converged());
        world.nodes[1].status =
            Some(NodeStatus { state: NodeState::Down.into(), ..Default::default() });
        assert!(world.judge().converged());
    }

    #[test]
    fn a_node_that_the_change_does_not_concern_is_not_waited_for() {
        let mut world = running(2);
        world.status.nodes[1] =
            NodeProgress { node_id: "n2".into(), held_index: 12, wanted_index: 12 };
        assert!(world.judge().converged());
        world.status.applied_index = 19;
        assert_eq!(world.judge().behind, 1, "the answer is older than the tasks");
        world.status.nodes.pop();
        assert_eq!(world.judge().behind, 1, "a node without a session is behind");
    }

    #[test]
    fn tasks_of_an_older_spec_or_on_a_lost_node_do_not_count() {
        let mut world = running(2);
        world.tasks[0].spec_version = 9;
        assert_eq!(world.judge().running, 1);
        let mut world = running(2);
        world.nodes[0].status =
            Some(NodeStatus { state: NodeState::Down.into(), ..Default::default() });
        assert_eq!(world.judge().running, 0);
    }

    #[test]
    fn more_tasks_than_wanted_is_not_converged() {
        let mut world = running(3);
        world.service.spec.as_mut().unwrap().replicas = 2;
        assert!(!world.judge().converged());
        world.tasks[2].desired_state = TaskState::Shutdown.into();
        assert!(world.judge().converged(), "a task that is told to stop is not waited for");
    }

    #[test]
    fn the_error_of_the_task_before_shows_while_its_successor_waits() {
        let world = World::new(1).task(1, 11, TaskState::Failed, "task: non-zero exit (1)").task(
            1,
            12,
            TaskState::Ready,
            "",
        );
        let judgement = world.judge();
        let expected =
            SlotState { slot: 1, state: TaskState::Ready, err: "task: non-zero exit (1)".into() };
        assert_eq!(judgement.slots, [expected]);
        assert_eq!(judgement.refused, None, "it started once");
    }

    #[test]
    fn a_service_is_refused_when_no_task_can_be_prepared() {
        let gone = "No such image: rootfs:/x";
        let world =
            World::new(2).task(1, 11, TaskState::Rejected, gone).task(1, 12, TaskState::Ready, "");
        assert_eq!(world.judge().refused, None, "the other slot may do better");
        let world = world.task(2, 13, TaskState::Rejected, gone);
        assert_eq!(world.judge().refused.as_deref(), Some(gone));
        let world = world.task(2, 14, TaskState::Running, "");
        assert_eq!(world.judge().refused, None, "one node has the image");
    }
}
