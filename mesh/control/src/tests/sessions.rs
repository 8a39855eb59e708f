//! Whose session it is, who is told what of its certificate, and who is a copy.

use std::time::Duration;

use shoal_api::{
    ClusterSpec, NodeRole, NodeState, RootRotation, SessionRequest, SigningCa, TaskState,
    TaskStatus, TaskStatusUpdate, UpdateClusterRequest, UpdateClusterWrite, write,
};

use super::{Bed, NEXT, ROOT, beat, opened, session, spec};
use crate::{Input, Refusal, RefusalKind, Standing};

fn update_cluster(bed: &mut Bed, edit: impl FnOnce(&mut ClusterSpec, &mut UpdateClusterWrite)) {
    let cluster = bed.cluster();
    let mut spec = cluster.spec.clone().unwrap();
    let mut write = UpdateClusterWrite::default();
    edit(&mut spec, &mut write);
    write.request = Some(UpdateClusterRequest {
        version: cluster.version(),
        spec: Some(spec),
        ..UpdateClusterRequest::default()
    });
    bed.write(write::Write::UpdateCluster(write)).unwrap();
}

#[test]
fn a_certificate_opens_sessions_of_its_own_node_only() {
    let mut bed = Bed::new(2);
    let request = SessionRequest { node_id: "n1".into(), ..SessionRequest::default() };
    let session_id = "stolen".to_owned();
    let step = bed.step(vec![Input::SessionOpened { session_id, caller: "n2".into(), request }]);
    let refusal = Refusal::OtherNode { caller: "n2".into(), id: "n1".into() };
    assert_eq!(refusal.kind(), RefusalKind::PermissionDenied);
    assert_eq!(step.closed, [("stolen".into(), refusal)], "the node's own session stays");
}

#[test]
fn another_node_neither_keeps_a_session_alive_nor_reports_for_it() {
    let mut bed = Bed::new(2);
    bed.create(spec("web", 2, &[])).unwrap();
    let task = bed.live("web").into_iter().find(|task| task.node_id == "n2").unwrap();
    let status = TaskStatus { state: TaskState::Failed.into(), ..TaskStatus::default() };
    let update = TaskStatusUpdate { task_id: task.id.clone(), status: Some(status) };
    let session_id = session("n2");
    let step = bed.step(vec![Input::TaskStatuses {
        id: 9,
        session_id: session_id.clone(),
        caller: "n1".into(),
        updates: vec![update],
    }]);
    assert_eq!(step.refused, [(9, Refusal::OthersSession { session_id })]);
    assert_eq!(bed.store.task(&task.id).unwrap().state(), TaskState::Assigned);
    for _ in 0..30 {
        bed.now = bed.now + Duration::from_millis(100);
        let mut stolen = beat("n2", 0);
        if let Input::Heartbeat { caller, .. } = &mut stolen {
            *caller = "n1".into();
        }
        let step = bed.step(vec![beat("n1", 0), stolen]);
        assert!(step.closed.iter().all(|(closed, _)| *closed == session("n2")));
    }
    assert_eq!(bed.node("n2").state(), NodeState::Down);
}

#[test]
fn a_node_is_patient_as_long_as_the_period_that_it_was_told() {
    let mut bed = Bed::new(1);
    update_cluster(&mut bed, |spec, _| spec.dispatcher_heartbeat_ns = Some(10_000_000_000));
    bed.acknowledge(&["n1".to_owned()]);
    bed.now = bed.now + Duration::from_millis(29_900);
    bed.step(Vec::new());
    assert_eq!(bed.node("n1").state(), NodeState::Ready);
    update_cluster(&mut bed, |spec, _| spec.dispatcher_heartbeat_ns = None);
    assert_eq!(bed.node("n1").state(), NodeState::Ready, "it was told another");
    bed.now = bed.now + Duration::from_millis(100);
    bed.step(Vec::new());
    assert_eq!(bed.node("n1").state(), NodeState::Down);
    bed.open("n1");
    bed.now = bed.now + Duration::from_secs(3);
    bed.step(Vec::new());
    assert_eq!(bed.node("n1").state(), NodeState::Down);
}

/// `raft_id` 0 is a worker's.
fn standing(node: &str, raft_id: u64, issuer: &str, trusted: &[&str]) -> Standing {
    Standing {
        session_id: session(node),
        node_id: node.into(),
        role: if raft_id == 0 { NodeRole::Worker } else { NodeRole::Manager },
        raft_id,
        issuer_digest: issuer.into(),
        trusted: trusted.iter().map(|digest| (*digest).to_owned()).collect(),
    }
}

#[test]
fn a_session_is_told_its_nodes_standing_first_and_whenever_it_changes() {
    let mut bed = Bed::new(2);
    let told = |bed: &mut Bed| bed.control.standings(&bed.store);
    let manager = standing("n1", 1, ROOT, &[ROOT]);
    let worker = standing("n2", 0, ROOT, &[ROOT]);
    assert_eq!(told(&mut bed), [manager, worker.clone()]);
    bed.create(spec("web", 2, &[])).unwrap();
    assert_eq!(told(&mut bed), [], "it is not about certificates");
    bed.set_role("n2", NodeRole::Manager).unwrap();
    assert_eq!(told(&mut bed), [standing("n2", 2, ROOT, &[ROOT])]);
    bed.set_role("n2", NodeRole::Worker).unwrap();
    assert_eq!(told(&mut bed), [], "Raft still has it");
    bed.step(vec![Input::MemberRemoved { raft_id: 2 }]);
    assert_eq!(told(&mut bed), std::slice::from_ref(&worker));
    bed.set_role("n2", NodeRole::Manager).unwrap();
    bed.set_role("n2", NodeRole::Worker).unwrap();
    bed.step(vec![Input::MemberRemoved { raft_id: 3 }]);
    bed.set_role("n2", NodeRole::Manager).unwrap();
    let again = standing("n2", 4, ROOT, &[ROOT]);
    assert_eq!(told(&mut bed), [again], "it must not go on under its old Raft id");
    bed.set_role("n2", NodeRole::Worker).unwrap();
    bed.step(vec![Input::MemberRemoved { raft_id: 4 }]);
    assert_eq!(told(&mut bed), [worker]);
    update_cluster(&mut bed, |spec, write| {
        spec.ca.get_or_insert_default().force_rotate = 1;
        let next = SigningCa { cert_pem: "NEXT".into(), key_pem: "KEY".into() };
        write.signed_by = ROOT.into();
        write.rotation = Some(RootRotation {
            next: Some(next),
            cross_signed_pem: "CROSS".into(),
            digest: NEXT.into(),
        });
    });
    let trusted = [ROOT, NEXT];
    let manager = standing("n1", 1, NEXT, &trusted);
    assert_eq!(told(&mut bed), [manager, standing("n2", 0, NEXT, &trusted)]);
    bed.open("n2");
    assert_eq!(told(&mut bed), [standing("n2", 0, NEXT, &trusted)]);
}

#[test]
fn a_standing_that_was_lost_with_a_batch_is_told_when_it_holds() {
    let mut bed = Bed::new(2);
    bed.control.standings(&bed.store);
    let write = bed.node_update("n2", |spec| spec.set_role(NodeRole::Manager));
    let write = shoal_api::Write { write: Some(write) };
    let input = Input::Write { id: 1, caller: shoal_api::Caller::default(), write };
    bed.control.step(&bed.store, vec![input.clone()], bed.now);
    bed.control.lost();
    assert_eq!(bed.control.standings(&bed.store), []);
    bed.step(vec![input]);
    let promoted = standing("n2", 2, ROOT, &[ROOT]);
    assert_eq!(bed.control.standings(&bed.store), [promoted]);
}

#[test]
fn a_copied_state_directory_is_refused_while_the_first_one_lives() {
    let mut bed = Bed::new(1);
    let open = |bed: &mut Bed, session_id: &str, instance: &str| {
        bed.step(vec![opened(session_id, "n1", instance)]).closed
    };
    let copy = || Refusal::Copy { id: "n1".into() };
    open(&mut bed, "a1", "A");
    // It may be a restart.
    let replaced = Refusal::Replaced { session_id: "a1".into() };
    assert_eq!(open(&mut bed, "b1", "B"), [("a1".into(), replaced)]);
    // It is not: the first one asks again.
    assert_eq!(open(&mut bed, "a2", "A"), [("b1".into(), copy())]);
    assert_eq!(open(&mut bed, "b2", "B"), [("b2".into(), copy())]);
    assert_eq!(copy().kind(), RefusalKind::PermissionDenied);
    // The first one goes, so the copy is the only one.
    bed.step(vec![Input::SessionClosed { session_id: "a2".into() }]);
    assert_eq!(open(&mut bed, "b3", "B"), []);
}

#[test]
fn a_node_that_says_too_much_does_not_fill_the_log() {
    let mut bed = Bed::new(1);
    let long = |length| {
        let hostname = "x".repeat(length);
        Some(shoal_api::NodeDescription { hostname, ..shoal_api::NodeDescription::default() })
    };
    let (node_id, description) = ("n1".to_owned(), long(1 << 20));
    let request = SessionRequest { node_id, description, ..SessionRequest::default() };
    let session_id = "wordy".to_owned();
    let step = bed.step(vec![Input::SessionOpened { session_id, caller: "n1".into(), request }]);
    let text = step.closed[0].1.to_string();
    assert_eq!(text, "node description is 1048580 bytes long, the most is 16384");
    bed.create(spec("web", 1, &[])).unwrap();
    let task = bed.live("web").remove(0);
    let status = TaskStatus {
        state: TaskState::Failed.into(),
        err: "é".repeat(1 << 20),
        ..TaskStatus::default()
    };
    bed.report_as("n1", &task, status);
    assert_eq!(bed.store.task(&task.id).unwrap().status.as_ref().unwrap().err, "é".repeat(512));
}
