//! The cluster's own update: versions, tokens, unlock key, and the roll-over to a new root.

use std::time::Duration;

use shoal_api::{
    CaSpec, Cluster, ClusterSpec, ExternalCa, NodeRole, RootRotation, SigningCa, TaskState,
    UpdateClusterRequest, UpdateClusterWrite, token, write, write_result,
};

use super::{
    Bed, MANAGER, NEXT, ROOT, WORKER, node_request, restart_after, session, spec, token_for,
};
use crate::{Answer, Input, RefusalKind};

/// A third root.
const THIRD: &str = "3333333333333333333333333333333333333333333333333333333333333333";

/// An update of what the cluster is now.
fn update(bed: &Bed, edit: impl FnOnce(&mut UpdateClusterWrite, &mut ClusterSpec)) -> write::Write {
    let cluster = bed.cluster();
    let mut spec = cluster.spec.clone().unwrap();
    let mut write = UpdateClusterWrite::default();
    let mut request =
        UpdateClusterRequest { version: cluster.version(), ..UpdateClusterRequest::default() };
    write.request = Some(request.clone());
    edit(&mut write, &mut spec);
    request = write.request.take().unwrap();
    request.spec = Some(spec);
    write.request = Some(request);
    write::Write::UpdateCluster(write)
}

fn request(write: &mut UpdateClusterWrite) -> &mut UpdateClusterRequest {
    write.request.as_mut().unwrap()
}

/// Rolls over to a root of that digest.
fn rotate(write: &mut UpdateClusterWrite, spec: &mut ClusterSpec, digest: &str) {
    let next = SigningCa { cert_pem: format!("CERT {digest}"), key_pem: "NEXT-KEY".into() };
    write.rotation = Some(RootRotation {
        next: Some(next),
        cross_signed_pem: "CROSS".into(),
        digest: digest.into(),
    });
    write.signed_by = ROOT.into();
    spec.ca.get_or_insert_default().force_rotate += 1;
}

/// Every node renews and says so.
fn renew_all(bed: &mut Bed, digest: &str) {
    let nodes: Vec<_> = bed.store.nodes().map(|node| node.id.clone()).collect();
    for node in nodes {
        renew(bed, &node);
        hold(bed, &node, digest);
    }
}

fn renew(bed: &mut Bed, node: &str) {
    let write = shoal_api::RenewWrite { node_id: node.into(), ..Default::default() };
    bed.write(write::Write::Renew(write)).unwrap();
}

fn hold(bed: &mut Bed, node: &str, digest: &str) {
    let (session_id, caller) = (session(node), node.to_owned());
    let held_index = bed.store.index();
    let issuer_digest = digest.to_owned();
    bed.step(vec![Input::Heartbeat { session_id, caller, held_index, issuer_digest }]);
}

fn external_ca() -> ExternalCa {
    ExternalCa { url: "https://ca.example/sign".into(), ..ExternalCa::default() }
}

#[test]
fn an_update_answers_with_the_cluster_and_without_its_keys() {
    let mut bed = Bed::new(1);
    let write = update(&bed, |write, spec| {
        spec.autolock = true;
        write.unlock_key = "SWMKEY-1-a".into();
    });
    let answer = bed.write(write).unwrap();
    assert_eq!(answer, Answer::Cluster);
    let Some(write_result::Result::Cluster(told)) = answer.result(&bed.store).result else {
        panic!("an update is answered by the cluster");
    };
    assert!(told.spec.as_ref().unwrap().autolock);
    assert_eq!(told.clone().redacted(), told, "no key is in it");
    assert_eq!(told.root_ca.unwrap().tokens.unwrap().worker, token_for(NodeRole::Worker));
    assert_eq!(bed.cluster().unlock_key, "SWMKEY-1-a");
}

#[test]
fn numbers_that_are_given_meanwhile_do_not_make_an_update_stale() {
    let mut bed = Bed::new(1);
    let write = update(&bed, |_, spec| spec.task_history_limit = Some(7));
    let version = bed.cluster().version();
    bed.create(spec("web", 2, &[])).unwrap();
    assert_ne!(bed.cluster().version(), version, "the cursors moved");
    bed.write(write.clone()).unwrap();
    bed.check_refused(write, RefusalKind::OutOfSequence, "update out of sequence");
    let mut ahead = update(&bed, |_, _| {});
    if let write::Write::UpdateCluster(write) = &mut ahead {
        request(write).version += 1;
    }
    bed.check_refused(ahead, RefusalKind::OutOfSequence, "update out of sequence");
}

#[test]
fn of_two_updates_in_one_step_one_holds() {
    let mut bed = Bed::new(1);
    let write = |limit| {
        let write = update(&bed, |_, spec| spec.task_history_limit = Some(limit));
        shoal_api::Write { write: Some(write) }
    };
    let caller = shoal_api::Caller::default;
    let inputs = vec![
        Input::Write { id: 1, caller: caller(), write: write(1) },
        Input::Write { id: 2, caller: caller(), write: write(2) },
    ];
    let step = bed.step(inputs);
    assert_eq!(step.refused, [(2, crate::Refusal::OutOfSequence)]);
    assert_eq!(bed.cluster().spec.unwrap().task_history_limit, Some(1));
}

#[test]
fn a_wrong_spec_is_refused() {
    let mut bed = Bed::new(1);
    let write = update(&bed, |_, spec| spec.name = "prod".into());
    let text = "swarm spec must be named \"default\"";
    bed.check_refused(write, RefusalKind::InvalidArgument, text);
    let expiry = CaSpec { node_cert_expiry_ns: Some(1), ..CaSpec::default() };
    let write = update(&bed, |_, spec| spec.ca = Some(expiry));
    let text = "minimum certificate expiry time is: 1h0m0s";
    bed.check_refused(write, RefusalKind::InvalidArgument, text);
}

#[test]
fn a_rotated_token_lets_nobody_in_and_the_other_one_still_does() {
    let mut bed = Bed::new(1);
    let write = update(&bed, |write, _| {
        request(write).rotate_worker_token = true;
        write.worker_secret = "fresh0secret".into();
    });
    bed.write(write).unwrap();
    let tokens = bed.cluster().root_ca.unwrap().tokens.unwrap();
    assert_eq!(Some(&tokens.worker), token::compose(ROOT, "fresh0secret").as_ref());
    assert_eq!(tokens.manager, token_for(NodeRole::Manager));
    let old = node_request("n2", NodeRole::Worker);
    let text = "invalid join token";
    bed.check_refused(write::Write::Join(old.clone()), RefusalKind::PermissionDenied, text);
    let fresh = shoal_api::JoinRequest { token: tokens.worker, ..old };
    bed.write(write::Write::Join(fresh)).unwrap();
    bed.write(write::Write::Join(node_request("n3", NodeRole::Manager))).unwrap();
    // Without a secret there is nothing to rotate to.
    let write = update(&bed, |write, _| request(write).rotate_manager_token = true);
    let text = "the request is empty or of a newer release";
    bed.check_refused(write, RefusalKind::InvalidArgument, text);
}

#[test]
fn the_unlock_key_is_there_while_autolock_is_on() {
    let mut bed = Bed::new(1);
    let with_key = |bed: &Bed, key: &str, rotates: bool, autolock: bool| {
        update(bed, |write, spec| {
            write.unlock_key = key.into();
            request(write).rotate_unlock_key = rotates;
            spec.autolock = autolock;
        })
    };
    let rotated_off = with_key(&bed, "a", true, false);
    let text = "cannot rotate because autolock is not turned on";
    bed.check_refused(rotated_off, RefusalKind::FailedPrecondition, text);
    let keyless = with_key(&bed, "", false, true);
    let text = "the request is empty or of a newer release";
    bed.check_refused(keyless, RefusalKind::InvalidArgument, text);
    for (key, rotates, autolock, expected) in [
        ("a", false, true, "a"),
        ("b", false, true, "a"),
        ("c", true, true, "c"),
        ("d", false, false, ""),
    ] {
        let write = with_key(&bed, key, rotates, autolock);
        bed.write(write).unwrap();
        assert_eq!(bed.cluster().unlock_key, expected, "{key}");
    }
}

#[test]
fn a_roll_over_ends_when_every_node_uses_a_certificate_of_the_new_root() {
    let mut bed = Bed::new(3);
    bed.pass(Duration::from_secs(1));
    let write = update(&bed, |write, spec| rotate(write, spec, NEXT));
    bed.write(write).unwrap();
    let root = |bed: &Bed| bed.cluster().root_ca.unwrap();
    assert_eq!(root(&bed).issuer_digest(), NEXT);
    assert_eq!(root(&bed).trusted_digests(), [ROOT, NEXT]);
    for node in ["n1", "n2", "n3"] {
        renew(&mut bed, node);
        assert_eq!(bed.node(node).certificate.unwrap().issuer_digest, NEXT);
    }
    // All were given one, and the third node's answer was lost.
    hold(&mut bed, "n1", NEXT);
    hold(&mut bed, "n2", NEXT);
    hold(&mut bed, "n3", ROOT);
    assert!(root(&bed).rotation.is_some());
    // Whoever joins meanwhile counts, too.
    bed.write(write::Write::Join(node_request("n4", NodeRole::Worker))).unwrap();
    bed.open("n4");
    hold(&mut bed, "n3", NEXT);
    assert!(root(&bed).rotation.is_some());
    hold(&mut bed, "n4", NEXT);
    let done = root(&bed);
    assert_eq!((done.rotation, done.digest.as_str()), (None, NEXT));
    let signing = done.signing.unwrap();
    assert_eq!(signing.cert_pem, format!("CERT {NEXT}"));
    assert_eq!(signing.key_pem, "NEXT-KEY");
    let tokens = done.tokens.unwrap();
    assert_eq!(Some(tokens.worker), token::compose(NEXT, WORKER), "the secret stays");
    assert_eq!(Some(tokens.manager), token::compose(NEXT, MANAGER));
    let old = write::Write::Join(node_request("n5", NodeRole::Worker));
    bed.check_refused(old, RefusalKind::PermissionDenied, "invalid join token");
}

#[test]
fn a_removed_node_does_not_hold_a_roll_over_up() {
    let mut bed = Bed::new(3);
    let write = update(&bed, |write, spec| rotate(write, spec, NEXT));
    bed.write(write).unwrap();
    for node in ["n1", "n2"] {
        renew(&mut bed, node);
        hold(&mut bed, node, NEXT);
    }
    let remove = shoal_api::RemoveNodeRequest { node_id: "n3".into(), force: true };
    bed.write(write::Write::RemoveNode(remove)).unwrap();
    assert_eq!(bed.cluster().root_ca.unwrap().digest, NEXT);
}

#[test]
fn a_new_leader_ends_what_the_one_before_began() {
    let mut bed = Bed::new(1);
    let write = update(&bed, |write, spec| rotate(write, spec, NEXT));
    bed.write(write).unwrap();
    renew(&mut bed, "n1");
    let (session_id, caller) = (session("n1"), "n1".into());
    let issuer_digest = NEXT.to_owned();
    let beat = Input::Heartbeat { session_id, caller, held_index: 0, issuer_digest };
    assert!(bed.control.step(&bed.store, vec![beat], bed.now).batch.is_some());
    bed.control.lost();
    bed.control = crate::Control::new(&bed.store, 9, bed.now, &Default::default());
    bed.open("n1");
    hold(&mut bed, "n1", NEXT);
    assert_eq!(bed.cluster().root_ca.unwrap().digest, NEXT);
}

#[test]
fn a_second_roll_over_supersedes_the_first() {
    let mut bed = Bed::new(2);
    let write = update(&bed, |write, spec| rotate(write, spec, NEXT));
    bed.write(write).unwrap();
    renew(&mut bed, "n1");
    hold(&mut bed, "n1", NEXT);
    let write = update(&bed, |write, spec| rotate(write, spec, THIRD));
    bed.write(write).unwrap();
    let root = bed.cluster().root_ca.unwrap();
    assert_eq!(root.trusted_digests(), [ROOT, THIRD]);
    assert_eq!(root.last_forced, 2);
    renew_all(&mut bed, THIRD);
    assert_eq!(bed.cluster().root_ca.unwrap().digest, THIRD);
}

#[test]
fn a_spec_that_forgets_the_roll_overs_does_not_swallow_the_next_one() {
    let mut bed = Bed::new(1);
    let write = update(&bed, |write, spec| rotate(write, spec, NEXT));
    bed.write(write).unwrap();
    let write = update(&bed, |_, spec| spec.ca = None);
    bed.write(write).unwrap();
    let write = update(&bed, |write, spec| rotate(write, spec, THIRD));
    bed.write(write).unwrap();
    assert_eq!(bed.cluster().root_ca.unwrap().issuer_digest(), THIRD);
}

#[test]
fn a_roll_over_needs_a_root_that_is_whole_new_and_signed_by_the_present_one() {
    let mut bed = Bed::new(1);
    let empty = "the request is empty or of a newer release";
    let check = |bed: &mut Bed, kind, text, edit: fn(&mut UpdateClusterWrite)| {
        let write = update(bed, |write, spec| {
            rotate(write, spec, NEXT);
            edit(write);
        });
        bed.check_refused(write, kind, text);
    };
    let wrong = RefusalKind::InvalidArgument;
    check(&mut bed, wrong, empty, |write| write.rotation = None);
    check(&mut bed, wrong, empty, |write| write.rotation.as_mut().unwrap().next = None);
    check(&mut bed, wrong, empty, |write| {
        write.rotation.as_mut().unwrap().cross_signed_pem.clear();
    });
    let stale = RefusalKind::OutOfSequence;
    check(&mut bed, stale, "update out of sequence", |write| write.signed_by = THIRD.into());
    check(&mut bed, wrong, empty, |write| write.rotation.as_mut().unwrap().digest = "x".into());
    // One that is not asked for does not begin.
    let write = update(&bed, |write, _| {
        rotate(write, &mut ClusterSpec::default(), NEXT);
        request(write).root = Some(SigningCa::default());
    });
    let text = "a new root CA takes a rotation: raise force_rotate with it";
    bed.check_refused(write, wrong, text);
}

/// Gives the root that is in use once more.
fn give_again(write: &mut UpdateClusterWrite, spec: &mut ClusterSpec, digest: &str, key: &str) {
    rotate(write, spec, digest);
    let rotation = write.rotation.as_mut().unwrap();
    rotation.cross_signed_pem.clear();
    rotation.next.as_mut().unwrap().key_pem = key.into();
    write.signed_by = digest.into();
}

#[test]
fn the_root_in_use_calls_a_roll_over_off() {
    let mut bed = Bed::new(2);
    let write = update(&bed, |write, spec| rotate(write, spec, NEXT));
    bed.write(write).unwrap();
    renew(&mut bed, "n1");
    hold(&mut bed, "n1", NEXT);
    let write = update(&bed, |write, spec| give_again(write, spec, ROOT, "KEY"));
    bed.write(write).unwrap();
    let root = bed.cluster().root_ca.unwrap();
    assert_eq!((root.rotation.as_ref(), root.last_forced), (None, 2));
    assert_eq!(root.trusted_digests(), [ROOT]);
    assert_eq!(root.tokens.unwrap().worker, token_for(NodeRole::Worker), "they never changed");
    renew(&mut bed, "n1");
    assert_eq!(bed.node("n1").certificate.unwrap().issuer_digest, ROOT);
}

#[test]
fn the_key_of_the_root_in_use_comes_and_goes() {
    let mut bed = Bed::new(1);
    let key = |bed: &Bed| bed.cluster().root_ca.unwrap().signing.unwrap().key_pem;
    let keyless = update(&bed, |write, spec| give_again(write, spec, ROOT, ""));
    let text = "there must be at least one valid, reachable external CA corresponding to the root \
                CA certificate, since its key is not given";
    bed.check_refused(keyless, RefusalKind::InvalidArgument, text);
    let keyless = update(&bed, |write, spec| {
        give_again(write, spec, ROOT, "");
        spec.ca.get_or_insert_default().external_cas = vec![external_ca()];
    });
    bed.write(keyless).unwrap();
    assert_eq!(key(&bed), "");
    let write = update(&bed, |write, spec| give_again(write, spec, ROOT, "KEY"));
    bed.write(write).unwrap();
    assert_eq!(key(&bed), "KEY");
}

#[test]
fn a_root_without_its_key_needs_an_external_ca() {
    let mut bed = Bed::new(1);
    let keyless = |write: &mut UpdateClusterWrite, spec: &mut ClusterSpec| {
        rotate(write, spec, NEXT);
        write.rotation.as_mut().unwrap().next.as_mut().unwrap().key_pem.clear();
    };
    let text = "there must be at least one valid, reachable external CA corresponding to the root \
                CA certificate, since its key is not given";
    let write = update(&bed, keyless);
    bed.check_refused(write, RefusalKind::InvalidArgument, text);
    let write = update(&bed, |write, spec| {
        keyless(write, spec);
        spec.ca.get_or_insert_default().external_cas = vec![external_ca()];
    });
    bed.write(write).unwrap();
    renew_all(&mut bed, NEXT);
    assert_eq!(bed.cluster().root_ca.unwrap().signing.unwrap().key_pem, "");
    // From now on the cluster cannot do without.
    let write = update(&bed, |_, spec| spec.ca.as_mut().unwrap().external_cas.clear());
    bed.check_refused(write, RefusalKind::InvalidArgument, text);
}

/// Old tasks of a slot that failed `failures` times, with that limit.
fn history(limit: Option<i64>, failures: usize) -> usize {
    let mut bed = Bed::with_subnet(1, "10.4.0.0/16");
    let write = update(&bed, |_, spec| spec.task_history_limit = limit);
    bed.write(write).unwrap();
    fail(&mut bed, failures);
    ended(&bed)
}

fn fail(bed: &mut Bed, failures: usize) {
    if bed.store.service_by_name("web").is_none() {
        let mut web = spec("web", 1, &[]);
        web.task.as_mut().unwrap().restart = restart_after(Duration::ZERO);
        bed.create(web).unwrap();
    }
    for _ in 0..failures {
        bed.now = bed.now + Duration::from_millis(1);
        let task = bed.live("web").remove(0);
        bed.report(&task, TaskState::Failed);
        bed.acknowledge(&["n1".to_owned()]);
    }
}

fn ended(bed: &Bed) -> usize {
    bed.all("web").iter().filter(|task| task.state().is_terminal()).count()
}

#[test]
fn a_slot_keeps_as_many_old_tasks_as_the_cluster_says() {
    assert_eq!(history(None, 8), 5);
    assert_eq!(history(Some(2), 8), 2);
    assert_eq!(history(Some(0), 8), 0);
    assert_eq!(history(Some(-1), 8), 8);
}

#[test]
fn a_lower_limit_holds_at_once() {
    let mut bed = Bed::new(1);
    fail(&mut bed, 5);
    let write = update(&bed, |_, spec| spec.task_history_limit = Some(1));
    bed.write(write).unwrap();
    assert_eq!(ended(&bed), 1);
}

#[test]
fn without_history_a_finished_slot_is_still_finished() {
    let mut bed = Bed::new(1);
    let write = update(&bed, |_, spec| spec.task_history_limit = Some(0));
    bed.write(write).unwrap();
    let mut job = spec("job", 1, &[]);
    let never = shoal_api::RestartCondition::None.into();
    job.task.as_mut().unwrap().restart =
        Some(shoal_api::RestartPolicy { condition: never, ..Default::default() });
    bed.create(job).unwrap();
    let task = bed.live("job").remove(0);
    bed.report(&task, TaskState::Complete);
    bed.pass(Duration::from_secs(1));
    let states: Vec<_> = bed.all("job").iter().map(shoal_api::Task::state).collect();
    assert_eq!(states, [TaskState::Complete], "it is not run again");
}

#[test]
fn the_clusters_object_is_one() {
    let bed = Bed::new(2);
    let clusters = bed.store.snapshot().objects.into_iter();
    let clusters: Vec<_> =
        clusters.filter(|object| object.kind() == Some(shoal_api::Kind::Cluster)).collect();
    assert_eq!(clusters, [Cluster::clone(bed.store.cluster().unwrap()).into()]);
}
