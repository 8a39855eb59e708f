//! Who comes in, as what, who becomes a manager, and who may go.

use std::time::Duration;

use shoal_api::{
    JoinRequest, JoinResponse, LeaveWrite, ManagerAddress, NodeAvailability, NodeRole, NodeSpec,
    NodeState, RemoveNodeRequest, RenewWrite, TaskState, write, write_result,
};

use super::{Bed, MANAGER, NEXT, ROOT, node_request, session, spec, token_for};
use crate::{Answer, Input, Refusal, RefusalKind};

fn join(node: &str, role: NodeRole) -> write::Write {
    write::Write::Join(node_request(node, role))
}

fn with(node: &str, edit: impl FnOnce(&mut JoinRequest)) -> write::Write {
    let mut request = node_request(node, NodeRole::Worker);
    edit(&mut request);
    write::Write::Join(request)
}

fn remove(node: &str, force: bool) -> write::Write {
    write::Write::RemoveNode(RemoveNodeRequest { node_id: node.into(), force })
}

fn leave(node: &str) -> write::Write {
    write::Write::Leave(LeaveWrite { node_id: node.into() })
}

fn joined(bed: &Bed, answer: &Answer) -> JoinResponse {
    match answer.result(&bed.store).result {
        Some(write_result::Result::Joined(joined)) => joined,
        other => panic!("not an answer to a join: {other:?}"),
    }
}

/// A cluster of managers, all ready.
fn managers(count: u32) -> Bed {
    let mut bed = Bed::new(count);
    for number in 2..=count {
        bed.set_role(&format!("n{number}"), NodeRole::Manager).expect("a worker may be promoted");
    }
    bed
}

fn reachable(bed: &mut Bed, nodes: &[&str]) {
    let node_ids = nodes.iter().map(|node| (*node).to_owned()).collect();
    bed.step(vec![Input::Reachable { node_ids }]);
}

fn out_of_raft(bed: &mut Bed, node: &str) {
    let raft_id = bed.node(node).manager.expect("it is a manager yet").raft_id;
    bed.step(vec![Input::MemberRemoved { raft_id }]);
}

#[test]
fn the_token_decides_the_role() {
    let mut bed = Bed::new(1);
    bed.write(join("n2", NodeRole::Worker)).unwrap();
    bed.write(join("n3", NodeRole::Manager)).unwrap();
    let (worker, manager) = (bed.node("n2"), bed.node("n3"));
    assert_eq!((worker.role(), worker.manager.as_ref()), (NodeRole::Worker, None));
    assert_eq!(manager.role(), NodeRole::Manager);
    assert_eq!(manager.manager.unwrap().addr, "10.88.0.3:2377");
    // What the newcomer says of its role does not count.
    let boast = with("n4", |request| {
        let role = NodeRole::Manager.into();
        request.spec = Some(NodeSpec { role, ..NodeSpec::default() });
    });
    bed.write(boast).unwrap();
    assert!(bed.node("n4").role() == NodeRole::Worker && !bed.node("n4").is_manager());
}

#[test]
fn without_one_of_the_clusters_tokens_nobody_joins() {
    let mut bed = Bed::new(1);
    let good = token_for(NodeRole::Worker);
    let foreign = shoal_api::token::compose(NEXT, MANAGER).unwrap();
    let longer = format!("{good}x");
    for token in ["", "SWMTKN-1-a-b", &good[..good.len() - 1], &longer, &foreign] {
        let write = with("n2", |request| token.clone_into(&mut request.token));
        bed.check_refused(write, RefusalKind::PermissionDenied, "invalid join token");
    }
}

#[test]
fn a_cluster_that_has_no_tokens_lets_nobody_in() {
    let mut bed = Bed::new(1);
    let mut founding = super::founding("");
    founding.root_ca.tokens = Some(shoal_api::JoinTokens::default());
    bed.store = crate::Store::default();
    bed.step(vec![Input::Bootstrap { id: 1, founding: Box::new(founding) }]);
    let write = with("n2", |request| request.token.clear());
    bed.check_refused(write, RefusalKind::PermissionDenied, "invalid join token");
}

#[test]
fn what_a_newcomer_says_of_itself_is_kept() {
    let mut bed = Bed::new(1);
    let write = with("n2", |request| {
        request.spec.get_or_insert_default().set_availability(NodeAvailability::Drain);
        request.description = Some(shoal_api::NodeDescription {
            hostname: "worker2".into(),
            ..shoal_api::NodeDescription::default()
        });
    });
    let answer = bed.write(write).unwrap();
    let node = bed.node("n2");
    assert_eq!(node.availability(), NodeAvailability::Drain);
    assert_eq!((node.hostname(), node.addr.as_str()), ("worker2", "10.88.0.2:2377"));
    let certificate = node.certificate.unwrap();
    assert_eq!((certificate.issuer_digest.as_str(), certificate.role()), (ROOT, NodeRole::Worker));
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(certificate.not_after_ns, (bed.now + 90 * day).nanos());
    assert_eq!(joined(&bed, &answer).raft_id, 0);
}

#[test]
fn joining_again_changes_neither_spec_nor_role() {
    let mut bed = Bed::new(2);
    bed.update_node("n2", |spec| drop(spec.labels.insert("disk".into(), "ssd".into())));
    let before = bed.node("n2");
    bed.write(join("n2", NodeRole::Manager)).unwrap();
    let after = bed.node("n2");
    assert_eq!((after.spec, after.number, after.manager), (before.spec, before.number, None));
}

#[test]
fn a_manager_that_comes_back_without_its_log_gets_another_id() {
    let mut bed = Bed::new(1);
    bed.write(join("n2", NodeRole::Manager)).unwrap();
    // The answer was lost.
    let again = bed.write(join("n2", NodeRole::Manager)).unwrap();
    assert_eq!(joined(&bed, &again).raft_id, 2);
    // It ran, and lost its disk.
    bed.open("n2");
    let anew = bed.write(join("n2", NodeRole::Manager)).unwrap();
    assert_eq!(joined(&bed, &anew).raft_id, 3);
}

#[test]
fn a_renewal_writes_down_what_the_certificate_says() {
    let mut bed = Bed::new(2);
    let not_after = |bed: &Bed| bed.node("n2").certificate.unwrap().not_after_ns;
    let before = not_after(&bed);
    bed.pass(Duration::from_secs(1));
    bed.set_role("n2", NodeRole::Manager).unwrap();
    let answer = bed
        .write(write::Write::Renew(RenewWrite { node_id: "n2".into(), ..RenewWrite::default() }));
    assert_eq!(joined(&bed, &answer.unwrap()).raft_id, 2);
    assert_eq!(bed.node("n2").certificate.unwrap().role(), NodeRole::Manager);
    assert_eq!(not_after(&bed), before + 1_000_000_000);
    let unknown = RenewWrite { node_id: "n7".into(), ..RenewWrite::default() };
    bed.check_refused(write::Write::Renew(unknown), RefusalKind::NotFound, "node n7 not found");
}

#[test]
fn a_promoted_worker_gets_a_place_in_raft_at_once() {
    let mut bed = Bed::new(2);
    bed.set_role("n2", NodeRole::Manager).unwrap();
    let manager = bed.node("n2").manager.unwrap();
    assert_eq!((manager.raft_id, manager.addr.as_str()), (2, "10.88.0.2:2377"));
}

#[test]
fn a_worker_that_cannot_be_reached_is_not_promoted() {
    let mut bed = Bed::new(1);
    bed.write(with("n2", |request| request.addr.clear())).unwrap();
    let write = bed.node_update("n2", |spec| spec.set_role(NodeRole::Manager));
    let text = "node n2 has not told its address yet: promote it when it is ready";
    bed.check_refused(write, RefusalKind::FailedPrecondition, text);
    // Its session tells.
    let request = shoal_api::SessionRequest {
        node_id: "n2".into(),
        addr: "10.88.0.2:2377".into(),
        ..shoal_api::SessionRequest::default()
    };
    let (session_id, caller) = (session("n2"), "n2".into());
    bed.step(vec![Input::SessionOpened { session_id, caller, request }]);
    assert_eq!(bed.node("n2").status.unwrap().addr, "10.88.0.2");
    bed.set_role("n2", NodeRole::Manager).unwrap();
}

#[test]
fn a_demoted_manager_is_one_until_raft_lacks_it_and_its_id_never_comes_back() {
    let mut bed = managers(3);
    bed.set_role("n3", NodeRole::Worker).unwrap();
    assert!(bed.node("n3").is_manager(), "Raft still has it");
    let write = bed.node_update("n3", |spec| spec.set_role(NodeRole::Manager));
    let text = "node n3 is still being demoted: promote it when it is a worker";
    bed.check_refused(write, RefusalKind::FailedPrecondition, text);
    out_of_raft(&mut bed, "n3");
    assert!(!bed.node("n3").is_manager());
    bed.set_role("n3", NodeRole::Manager).unwrap();
    assert_eq!(bed.node("n3").manager.unwrap().raft_id, 4);
}

#[test]
fn a_manager_that_raft_has_not_taken_yet_stays_one() {
    let mut bed = managers(2);
    out_of_raft(&mut bed, "n2");
    assert!(bed.node("n2").is_manager());
    bed.step(vec![Input::MemberRemoved { raft_id: 77 }]);
}

#[test]
fn the_last_manager_is_not_demoted() {
    let mut bed = Bed::new(2);
    let write = bed.node_update("n1", |spec| spec.set_role(NodeRole::Worker));
    let text = "attempting to demote the last manager of the swarm";
    bed.check_refused(write, RefusalKind::FailedPrecondition, text);
    // Nor is the last that is not on its way out.
    bed.set_role("n2", NodeRole::Manager).unwrap();
    bed.set_role("n2", NodeRole::Worker).unwrap();
    let write = bed.node_update("n1", |spec| spec.set_role(NodeRole::Worker));
    bed.check_refused(write, RefusalKind::FailedPrecondition, text);
}

fn check_demotion(count: u32, answering: &[&str], node: &str, allowed: bool) {
    let mut bed = managers(count);
    reachable(&mut bed, answering);
    let write = bed.node_update(node, |spec| spec.set_role(NodeRole::Worker));
    if allowed {
        bed.write(write).unwrap();
    } else {
        let text = "can't remove member from the raft: this would result in a loss of quorum";
        bed.check_refused(write, RefusalKind::FailedPrecondition, text);
    }
}

#[test]
fn a_demotion_that_would_lose_the_quorum_is_refused() {
    check_demotion(3, &["n1", "n2"], "n3", true);
    check_demotion(3, &["n1", "n2"], "n2", false);
    check_demotion(5, &["n1", "n2", "n3"], "n3", false);
    check_demotion(5, &["n1", "n2", "n3"], "n4", true);
    check_demotion(2, &["n1", "n2"], "n2", true);
    check_demotion(2, &["n1"], "n1", false);
}

#[test]
fn a_ready_node_is_removed_by_force_only() {
    let mut bed = Bed::new(2);
    let text = "node n2 is not down and can't be removed";
    bed.check_refused(remove("n2", false), RefusalKind::FailedPrecondition, text);
    bed.write(remove("n2", true)).unwrap();
    assert!(bed.store.node("n2").is_none());
    bed.check_refused(remove("n2", true), RefusalKind::NotFound, "node n2 not found");
}

#[test]
fn a_manager_is_demoted_before_it_is_removed() {
    let mut bed = managers(3);
    let text = "node n3 is a cluster manager and is a member of the raft cluster. It must be \
                demoted to worker before removal";
    bed.check_refused(remove("n3", true), RefusalKind::FailedPrecondition, text);
    bed.set_role("n3", NodeRole::Worker).unwrap();
    bed.check_refused(remove("n3", true), RefusalKind::FailedPrecondition, text);
    out_of_raft(&mut bed, "n3");
    bed.write(remove("n3", true)).unwrap();
}

#[test]
fn a_removed_node_loses_its_session_its_tasks_and_its_number() {
    let mut bed = Bed::new(2);
    bed.create(spec("web", 2, &[])).unwrap();
    bed.run_all("web");
    bed.pass(Duration::from_secs(1));
    let lost = bed.live("web").into_iter().find(|task| task.node_id == "n2").unwrap();
    let write = shoal_api::Write { write: Some(remove("n2", true)) };
    let caller = shoal_api::Caller::default();
    let step = bed.step(vec![Input::Write { id: 1, caller, write }]);
    assert_eq!(step.closed, [(session("n2"), Refusal::Removed { id: "n2".into() })]);
    assert_eq!(bed.store.task(&lost.id).unwrap().state(), TaskState::Orphaned);
    assert!(bed.live("web").iter().all(|task| task.node_id == "n1"));
    assert_eq!(bed.store.holder(&crate::Claim::NodeNumber(2)), None);
}

#[test]
fn the_tasks_of_a_removed_node_are_given_up_though_they_fill_several_batches() {
    let mut bed = Bed::with_subnet(2, "10.4.0.0/16");
    bed.create(spec("web", 2_500, &[])).unwrap();
    let on = |bed: &Bed, state| {
        bed.store.tasks_of_node("n2").filter(|task| task.state() == state).count()
    };
    assert_eq!(on(&bed, TaskState::Assigned), 1_250);
    bed.write(remove("n2", true)).unwrap();
    assert_eq!(on(&bed, TaskState::Assigned), 0);
    assert_eq!(bed.live("web").iter().filter(|task| task.node_id == "n1").count(), 2_500);
    let (changes, _) = bed.largest;
    assert!(changes <= crate::draft::ROOM + 3, "{changes}");
}

#[test]
fn a_removed_node_is_refused_until_its_certificate_is_long_expired() {
    let mut bed = Bed::new(2);
    bed.write(remove("n2", true)).unwrap();
    let text = "node n2 was removed from the swarm: leave and join again to be a new node";
    bed.check_refused(join("n2", NodeRole::Manager), RefusalKind::PermissionDenied, text);
    let renew = write::Write::Renew(RenewWrite { node_id: "n2".into(), ..RenewWrite::default() });
    bed.check_refused(renew, RefusalKind::PermissionDenied, text);
    let step = bed.open("n2");
    assert_eq!(step.closed, [(session("n2"), Refusal::Removed { id: "n2".into() })]);
    let day = Duration::from_secs(24 * 60 * 60);
    bed.now = bed.now + 97 * day - Duration::from_secs(1);
    bed.step(Vec::new());
    assert!(bed.cluster().has_removed("n2"));
    bed.now = bed.now + Duration::from_secs(1);
    assert!(bed.control.deadline().is_some_and(|at| at <= bed.now));
    bed.step(Vec::new());
    assert!(!bed.cluster().has_removed("n2"));
}

#[test]
fn a_node_that_leaves_is_down_at_once() {
    let mut bed = managers(3);
    let write = shoal_api::Write { write: Some(leave("n3")) };
    let caller = shoal_api::Caller::default();
    let step = bed.step(vec![Input::Write { id: 1, caller, write }]);
    assert_eq!(step.closed, [(session("n3"), Refusal::Left { id: "n3".into() })]);
    let node = bed.node("n3");
    assert_eq!((node.state(), node.role()), (NodeState::Down, NodeRole::Worker));
    assert!(node.is_manager(), "Raft still has it");
    out_of_raft(&mut bed, "n3");
    bed.write(remove("n3", false)).unwrap();
    // One that never had a place in Raft just goes.
    let mut bed = Bed::new(2);
    bed.write(leave("n2")).unwrap();
    assert_eq!(bed.node("n2").state(), NodeState::Down);
}

#[test]
fn the_last_manager_leaves_only_an_empty_cluster() {
    let mut bed = Bed::new(2);
    let text = "You are attempting to leave the swarm on a node that is participating as a \
                manager. Removing the last manager erases all current state of the swarm. Use \
                `--force` to ignore this message.";
    bed.check_refused(leave("n1"), RefusalKind::FailedPrecondition, text);
    bed.write(remove("n2", true)).unwrap();
    let before = bed.store.clone();
    assert_eq!(bed.write(leave("n1")), Ok(Answer::Removed));
    assert_eq!(bed.store, before, "nobody is left to remember it");
}

#[test]
fn a_manager_whose_leave_would_lose_the_quorum_is_refused() {
    let mut bed = managers(3);
    reachable(&mut bed, &["n1", "n2"]);
    let text = "can't remove member from the raft: this would result in a loss of quorum";
    bed.check_refused(leave("n2"), RefusalKind::FailedPrecondition, text);
}

#[test]
fn a_manager_may_move_and_nobody_else_for_it() {
    let mut bed = managers(2);
    let moved = |raft_id, addr: &str| {
        let (node_id, addr) = ("n2".to_owned(), addr.to_owned());
        write::Write::Moved(ManagerAddress { raft_id, node_id, addr, generation: 1 })
    };
    bed.write(moved(2, "10.99.0.2:2377")).unwrap();
    let node = bed.node("n2");
    assert_eq!(
        (node.manager.unwrap().addr, node.addr),
        ("10.99.0.2:2377".into(), "10.99.0.2:2377".into())
    );
    let text = "can't find manager in raft memberlist";
    bed.check_refused(moved(9, "10.99.0.2:2377"), RefusalKind::NotFound, text);
    let text = "invalid address \"10.99.0.2\": use HOST:PORT";
    bed.check_refused(moved(2, "10.99.0.2"), RefusalKind::InvalidArgument, text);
    bed.create(spec("web", 1, &[(8080, 80)])).unwrap();
    let text = "port 8080/tcp of the joining node is published by service 'web': choose another, \
                or remove the service";
    bed.check_refused(moved(2, "10.99.0.2:8080"), RefusalKind::FailedPrecondition, text);
}

#[test]
fn a_node_update_from_an_old_version_is_out_of_sequence() {
    let mut bed = Bed::new(2);
    let stale = bed.node_update("n2", |spec| spec.set_availability(NodeAvailability::Pause));
    bed.update_node("n2", |spec| drop(spec.labels.insert("a".into(), "b".into())));
    bed.check_refused(stale, RefusalKind::OutOfSequence, "update out of sequence");
    let unknown = bed.node_update("n2", |spec| spec.availability = 7);
    bed.check_refused(unknown, RefusalKind::InvalidArgument, "invalid Availability: \"7\"");
}
