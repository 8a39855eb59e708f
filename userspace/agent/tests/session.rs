//! The session: finding the leader, losing it, and saying everything until it is heard.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::manager::Manager;
use common::node::{Node, script};
use common::wire::Wire;
use common::{eventually, pki};
use shoal_agent::Agent;
use shoal_agent::executor::simulated::Simulated;
use shoal_api::session_message::Message;
use shoal_api::{NodeRole, Standing, TaskState, TaskStatus};

#[tokio::test]
async fn a_follower_sends_the_agent_to_the_leader() {
    let (node, leader, follower) = (Node::new(), Manager::start().await, Manager::start().await);
    follower.state.lock().leader = Some(leader.addr.clone());
    let _agent = node.agent(&[&follower.addr]);
    leader.held(1).await;
    let request = leader.state.lock().requests[0].clone();
    assert_eq!((request.node_id.as_str(), request.data_path_addr.as_str()), ("node1", "192.0.2.1"));
    assert_eq!(request.description.unwrap().hostname, "n1");
    assert_eq!((request.addr.as_str(), request.instance.as_str()), ("192.0.2.1:2377", "i1"));
    assert_eq!(leader.state.lock().callers, ["node1"]);
}

#[tokio::test]
async fn the_agent_goes_on_with_a_manager_that_it_learnt_of() {
    let (node, first, second) = (Node::new(), Manager::start().await, Manager::start().await);
    second.state.lock().index = 9;
    first.state.lock().managers = vec![first.addr.clone(), second.addr.clone()];
    let agent = node.agent(&[&first.addr]);
    first.held(1).await;
    drop(first);
    second.held(9).await;
    assert_eq!(agent.held_index(), 9);
    // And after a restart too, though the only address it was given is dead.
    agent.shutdown().await;
    second.state.lock().heartbeats.clear();
    let _agent = node.agent(&["127.0.0.1:1"]);
    second.held(9).await;
}

#[tokio::test]
async fn a_connection_that_outlived_its_certificate_is_made_anew_to_the_same_manager() {
    let (node, first, second) = (Node::new(), Manager::start().await, Manager::start().await);
    first.state.lock().managers = vec![first.addr.clone(), second.addr.clone()];
    let agent = node.agent(&[&first.addr]);
    first.held(1).await;
    {
        let mut state = first.state.lock();
        (state.stale, state.heartbeat_ms) = (true, 10);
        state.heartbeats.clear();
    }
    first.held(1).await;
    assert_eq!((first.state.lock().requests.len(), second.state.lock().requests.len()), (2, 0));
    assert_eq!(*agent.refused().borrow(), None, "nobody refuses the node");
}

#[tokio::test]
async fn a_manager_that_falls_silent_is_left_for_another_before_the_node_counts_as_down() {
    let (node, first, second) = (Node::new(), Manager::start().await, Manager::start().await);
    second.state.lock().index = 9;
    let wire = Wire::to(&first.addr).await;
    first.state.lock().managers = vec![wire.addr.clone(), second.addr.clone()];
    let _agent = node.agent(&[&wire.addr]);
    first.held(1).await;
    let cut = Instant::now();
    wire.cut.send_replace(true);
    second.held(9).await;
    let took = cut.elapsed();
    eprintln!("another manager has the session after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_leader_that_was_cut_off_is_found_again_though_it_was_given_up() {
    let (node, leader, follower) = (Node::new(), Manager::start().await, Manager::start().await);
    let wire = Wire::to(&leader.addr).await;
    follower.state.lock().leader = Some(wire.addr.clone());
    let _agent = node.agent(&[&follower.addr, &wire.addr]);
    leader.held(1).await;
    follower.state.lock().redirects = 0;
    wire.cut.send_replace(true);
    // Named, tried in vain, and named again: the agent holds it for dead now.
    eventually("the follower is asked again and again", || {
        (follower.state.lock().redirects >= 4).then_some(())
    })
    .await;
    leader.state.lock().heartbeats.clear();
    wire.cut.send_replace(false);
    leader.held(1).await;
}

#[tokio::test]
async fn heartbeats_come_every_period_and_at_once_when_more_is_held() {
    let (node, manager) = (Node::new(), Manager::start().await);
    manager.state.lock().heartbeat_ms = 60_000;
    let agent = node.agent(&[&manager.addr]);
    manager.held(1).await;
    // Far before the next period.
    manager.put(finished("t1"));
    manager.held(2).await;
    manager.put(finished("t2"));
    manager.held(3).await;
    agent.shutdown().await;

    manager.state.lock().heartbeat_ms = 20;
    manager.state.lock().heartbeats.clear();
    let _agent = node.agent(&[&manager.addr]);
    eventually("many heartbeats", || (manager.state.lock().heartbeats.len() >= 10).then_some(()))
        .await;
}

#[tokio::test]
async fn a_plan_that_failed_is_tried_again_and_not_held_until_then() {
    let (node, manager) = (Node::new(), Manager::start().await);
    manager.state.lock().heartbeat_ms = 10;
    node.kernel.0.lock().failures = 2;
    let _agent = node.agent(&[&manager.addr]);
    manager.held(0).await;
    manager.held(1).await;
    assert_eq!(node.kernel.0.lock().failures, 0);
}

#[tokio::test]
async fn changes_that_do_not_follow_lead_to_a_new_complete_set() {
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    manager.held(1).await;
    // As if changes had been lost.
    manager.state.lock().index = 40;
    manager.put(finished("t1"));
    manager.held(41).await;
    assert_eq!(manager.state.lock().requests.len(), 2);
}

#[tokio::test]
async fn a_status_is_said_until_it_is_acknowledged_and_again_to_a_new_session() {
    let (node, manager) = (Node::new(), Manager::start().await);
    manager.state.lock().refused_reports = 3;
    let _agent = node.agent(&[&manager.addr]);
    // Without a container spec it is rejected at once, by any user.
    let mut task = script("t1", "");
    task.spec = None;
    manager.put(task);
    let status = manager.reached("t1", TaskState::Rejected).await;
    assert_eq!(status.err, "no container spec");
    assert_eq!(manager.state.lock().refused_reports, 0);

    manager.state.lock().statuses.clear();
    manager.end_session();
    assert_eq!(manager.reached("t1", TaskState::Rejected).await, status);
}

#[tokio::test]
async fn a_task_that_ran_here_and_left_no_trace_is_not_started_again() {
    let (node, manager) = (Node::new(), Manager::start().await);
    let _agent = node.agent(&[&manager.addr]);
    let mut task = script("t1", "exit 0");
    task.status = Some(TaskStatus { state: TaskState::Running.into(), ..TaskStatus::default() });
    manager.put(task);
    let status = manager.reached("t1", TaskState::Complete).await;
    assert_eq!(status.state(), TaskState::Failed);
    assert_eq!(status.err, "the task is gone: the host or its shim stopped");
}

#[tokio::test]
async fn simulated_tasks_go_the_same_ways_as_real_ones() {
    let (node, manager, executor) = (Node::new(), Manager::start().await, Simulated::default());
    let config = node.config(&[&manager.addr]);
    let agent =
        Agent::start_with(config.clone(), node.kernel.clone(), Arc::new(executor.clone())).unwrap();
    for number in 0..200 {
        manager.put(script(&format!("t{number}"), ""));
    }
    eventually("all run", || (executor.running() == 200).then_some(())).await;
    assert!(executor.end("t7", 3));
    assert_eq!(manager.reached("t7", TaskState::Complete).await.err, "task: non-zero exit (3)");
    // A restarted agent with the same executor takes all of them over.
    agent.shutdown().await;
    assert_eq!(executor.running(), 199);
    let _agent =
        Agent::start_with(config, node.kernel.clone(), Arc::new(executor.clone())).unwrap();
    manager.desire("t8", TaskState::Shutdown);
    assert_eq!(manager.reached("t8", TaskState::Complete).await.state(), TaskState::Shutdown);
    for number in 0..200 {
        manager.remove(&format!("t{number}"));
    }
    eventually("nothing is left", || {
        let files = node.dir.path().join("state/tasks").read_dir().unwrap().count();
        (files == 0 && node.kernel.0.lock().links.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_manager_that_another_root_signed_for_is_passed_over() {
    let node = Node::new();
    let (impostor, manager) = (Manager::start_as(pki::impostor()).await, Manager::start().await);
    let _agent = node.agent(&[&impostor.addr, &manager.addr]);
    manager.held(1).await;
    assert!(impostor.state.lock().requests.is_empty());
}

#[tokio::test]
async fn a_name_that_was_given_once_leads_to_managers_that_all_have_moved() {
    let (node, manager) = (Node::new(), Manager::start().await);
    // They say where they are, and are there no longer.
    manager.state.lock().managers = vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()];
    let name = format!("localhost:{}", manager.addr.rsplit_once(':').unwrap().1);
    let agent = node.agent(&[&name]);
    manager.held(1).await;
    assert_eq!(agent.managers(), ["127.0.0.1:1", "127.0.0.1:2", name.as_str()]);
    agent.shutdown().await;
    manager.state.lock().heartbeats.clear();
    let _agent = node.agent(&[]);
    manager.held(1).await;
}

#[tokio::test]
async fn what_the_cluster_wants_of_the_certificate_is_told_to_the_daemon() {
    let (node, manager) = (Node::new(), Manager::start().await);
    let first = Standing { issuer_digest: "a".into(), ..Standing::default() };
    manager.state.lock().standing = Some(first.clone());
    let agent = node.agent(&[&manager.addr]);
    let mut standing = agent.standing();
    let seen = standing.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(seen, Some(first));
    let second = Standing { role: NodeRole::Manager.into(), ..Standing::default() };
    manager.state.lock().send(Message::Standing(second.clone()));
    standing.changed().await.unwrap();
    assert_eq!(*standing.borrow(), Some(second));
    assert_eq!(manager.state.lock().requests.len(), 1);
}

#[tokio::test]
async fn heartbeats_name_the_certificates_root_and_follow_a_new_period_and_a_new_certificate() {
    let (node, manager) = (Node::new(), Manager::start().await);
    manager.state.lock().heartbeat_ms = 60_000;
    let config = node.config(&[&manager.addr]);
    let credentials = config.credentials.clone();
    let _agent = Agent::start(config, node.kernel.clone()).unwrap();
    manager.held(1).await;
    assert_eq!(*manager.state.lock().issuers.last().unwrap(), pki::digest());

    // Far before the next one, and in the same session.
    let before = manager.state.lock().heartbeats.len();
    manager.state.lock().told_heartbeat_ms = 20;
    let (chain, key) = pki::issue("node1", NodeRole::Worker, 7);
    credentials.replace(&chain, &key, &pki::roots_pem()).unwrap();
    eventually("many heartbeats", || {
        (manager.state.lock().heartbeats.len() >= before + 10).then_some(())
    })
    .await;
    assert_eq!(manager.state.lock().requests.len(), 1);
}

#[tokio::test]
async fn a_node_that_was_removed_says_so_and_asks_ever_more_rarely() {
    let (node, manager) = (Node::new(), Manager::start().await);
    let agent = node.agent(&[&manager.addr]);
    manager.held(1).await;
    let mut refused = agent.refused();
    assert_eq!(*refused.borrow(), None);

    let why = "node node1 was removed from the cluster";
    manager.state.lock().refusal = Some(why.into());
    manager.end_session();
    let removed = Instant::now();
    let said = refused.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(said.as_deref(), Some(why));
    eventually("more refusals", || (manager.state.lock().refusals >= 5).then_some(())).await;
    // Five of an ordinary session's tries take less.
    assert!(removed.elapsed() > Duration::from_millis(50 + 100 + 200 + 400));

    manager.state.lock().refusal = None;
    manager.state.lock().heartbeats.clear();
    manager.held(1).await;
    assert_eq!(*refused.borrow(), None);
}

#[tokio::test]
async fn a_node_that_leaves_keeps_no_task_and_no_file_of_the_agent() {
    let (node, manager, executor) = (Node::new(), Manager::start().await, Simulated::default());
    let config = node.config(&[&manager.addr]);
    let agent = Agent::start_with(config, node.kernel.clone(), Arc::new(executor.clone())).unwrap();
    for number in 0..20 {
        manager.put(script(&format!("t{number}"), ""));
    }
    manager.put(finished("old"));
    eventually("all run", || (executor.running() == 20).then_some(())).await;
    agent.remove_all().await;
    assert_eq!(executor.running(), 0);
    assert!(node.kernel.0.lock().links.is_empty());
    assert_eq!(node.dir.path().join("state").read_dir().unwrap().count(), 0);
}

/// A task that asks nothing of the node but its place in the stream.
fn finished(id: &str) -> shoal_api::Task {
    let mut task = script(id, "");
    task.status = Some(TaskStatus { state: TaskState::Complete.into(), ..TaskStatus::default() });
    task
}
