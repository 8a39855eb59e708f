//! What users may ask, what they get, and that a refusal leaves nothing behind.

use shoal_api::{NodeRole, UpdateServiceRequest, write};

use super::{Bed, node_request, spec};
use crate::{Answer, RefusalKind};

fn create(name: &str, ports: &[(u32, u32)]) -> write::Write {
    let spec = Some(spec(name, 1, ports));
    write::Write::CreateService(shoal_api::CreateServiceRequest { spec })
}

#[test]
fn a_new_service_is_one_batch_down_to_the_nodes_of_its_tasks() {
    let mut bed = Bed::new(3);
    let index = bed.store.index();
    let answer = bed.create(spec("web", 3, &[(8080, 80)])).unwrap();
    assert_eq!(bed.store.index(), index + 1);
    assert_eq!(answer, Answer::Service(bed.service("web").id));
    let nodes: Vec<_> = bed.live("web").into_iter().map(|task| task.node_id).collect();
    assert_eq!(nodes.len(), 3);
    assert!(["n1", "n2", "n3"].iter().all(|node| nodes.iter().any(|of| of == node)), "{nodes:?}");
}

#[test]
fn a_taken_name_is_refused() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[])).unwrap();
    let text = "name conflicts with an existing object: service web already exists";
    bed.check_refused(create("web", &[]), RefusalKind::AlreadyExists, text);
}

#[test]
fn a_taken_port_is_refused_and_its_owner_named() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[(8080, 80)])).unwrap();
    let id = bed.service("web").id;
    let text = format!("port '8080' is already in use by service 'web' ({id}) as an ingress port");
    let clash = create("other", &[(9000, 1), (8080, 2)]);
    bed.check_refused(clash, RefusalKind::InvalidArgument, &text);
}

#[test]
fn a_wrong_spec_is_refused() {
    let mut bed = Bed::new(1);
    let text = "EndpointSpec: target port 0 is not in the range 1-65535";
    bed.check_refused(create("web", &[(80, 0)]), RefusalKind::InvalidArgument, text);
}

#[test]
fn a_stale_version_is_out_of_sequence() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[])).unwrap();
    let old = bed.service("web");
    bed.update("web", |spec| spec.replicas = 2).unwrap();
    let stale = UpdateServiceRequest {
        service_id: old.id.clone(),
        version: old.version(),
        spec: old.spec.clone(),
    };
    let write = write::Write::UpdateService(stale);
    bed.check_refused(write, RefusalKind::OutOfSequence, "update out of sequence");
}

#[test]
fn of_two_updates_from_one_version_in_one_step_one_holds() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[])).unwrap();
    let service = bed.service("web");
    let update = |id, replicas| {
        let request = UpdateServiceRequest {
            service_id: service.id.clone(),
            version: service.version(),
            spec: Some(spec("web", replicas, &[])),
        };
        let write = shoal_api::Write { write: Some(write::Write::UpdateService(request)) };
        crate::Input::Write { id, caller: shoal_api::Caller::default(), write }
    };
    let step = bed.step(vec![update(1, 2), update(2, 3)]);
    assert_eq!(step.refused, [(2, crate::Refusal::OutOfSequence)]);
    assert_eq!(bed.live("web").len(), 2);
}

#[test]
fn the_clusters_own_ports_are_not_published() {
    let mut bed = Bed::new(2);
    let refusal = bed.create(spec("web", 1, &[(2377, 80)])).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "port 2377/tcp is the cluster's own manager port on node n1: publish another"
    );
    let mut dns = spec("dns", 1, &[(4789, 53)]);
    dns.endpoint.as_mut().unwrap().ports[0].set_protocol(shoal_api::Protocol::Udp);
    let refusal = bed.create(dns.clone()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "port 4789/udp is the cluster's own data path port on node n1: publish another"
    );
    // Each number is free in the other protocol.
    bed.create(spec("tcp", 1, &[(4789, 80)])).unwrap();
    dns.endpoint.as_mut().unwrap().ports[0].published_port = 2377;
    bed.create(dns).unwrap();
}

#[test]
fn a_node_does_not_join_on_a_published_port_or_with_another_data_path() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[(8080, 80)])).unwrap();
    let mut manager = node_request("n9", NodeRole::Manager);
    manager.addr = "10.88.0.9:8080".into();
    let join = write::Write::Join(manager.clone());
    bed.check_refused(
        join,
        RefusalKind::FailedPrecondition,
        "port 8080/tcp of the joining node is published by service 'web': choose another, or \
         remove the service",
    );
    manager.addr = "10.88.0.9:2377".into();
    manager.data_path_port = 4790;
    let join = write::Write::Join(manager);
    bed.check_refused(
        join,
        RefusalKind::FailedPrecondition,
        "the data path port of this cluster is 4789, not 4790: use the same",
    );
}

#[test]
fn a_service_keeps_its_name() {
    let mut bed = Bed::new(1);
    bed.create(spec("web", 1, &[])).unwrap();
    let refusal = bed.update("web", |spec| spec.name = "www".into()).unwrap_err();
    assert_eq!(refusal.to_string(), "renaming services is not supported");
}

#[test]
fn what_is_not_there_is_not_found() {
    let mut bed = Bed::new(1);
    let refusal = bed.remove("web").unwrap_err();
    assert_eq!(refusal.to_string(), "service web not found");
    assert_eq!(refusal.kind(), RefusalKind::NotFound);
}

#[test]
fn a_removed_name_and_port_may_be_used_at_once() {
    let mut bed = Bed::new(2);
    bed.create(spec("web", 2, &[(8080, 80)])).unwrap();
    bed.run_all("web");
    let old = bed.service("web").id;
    bed.remove("web").unwrap();
    assert_eq!(bed.remove("web").unwrap_err().kind(), RefusalKind::NotFound);
    bed.create(spec("web", 1, &[(8080, 80)])).unwrap();
    assert_ne!(bed.service("web").id, old);
    assert_eq!(bed.service("web").ports[0].published_port, 8080);
    assert_eq!(bed.store.service(&old).unwrap().ports, []);
}

#[test]
fn a_joining_manager_gets_an_id_that_was_never_given() {
    let mut bed = Bed::new(1);
    let join = write::Write::Join(node_request("n2", NodeRole::Manager));
    let answer = bed.write(join.clone()).unwrap();
    let Some(shoal_api::write_result::Result::Joined(joined)) = answer.result(&bed.store).result
    else {
        panic!("a join is answered by what the node must know")
    };
    assert_eq!(joined.raft_id, 2);
    assert_eq!(joined.managers, ["10.88.0.1:2377", "10.88.0.2:2377"]);
    assert_eq!(joined.cluster_id, bed.store.cluster().unwrap().id);
    let again = bed.write(join).unwrap();
    assert_eq!(again.result(&bed.store), answer.result(&bed.store), "joining twice is joining");
}

#[test]
fn a_join_with_a_wrong_address_is_refused() {
    let mut bed = Bed::new(1);
    let mut join = node_request("n2", NodeRole::Manager);
    join.addr = "n2".into();
    let text = "invalid address \"n2\": use HOST:PORT";
    bed.check_refused(write::Write::Join(join), RefusalKind::InvalidArgument, text);
    let mut join = node_request("n2", NodeRole::Worker);
    join.data_path_addr = "10.88.0.2:1".into();
    let text = "invalid address \"10.88.0.2:1\": the data path needs an IP address without a port";
    bed.check_refused(write::Write::Join(join), RefusalKind::InvalidArgument, text);
}

#[test]
fn nobody_joins_before_there_is_a_cluster() {
    let mut bed = Bed::new(0);
    bed.store = crate::Store::default();
    let join = write::Write::Join(node_request("n2", NodeRole::Worker));
    let text = "this node is not part of a swarm: use \"shoal init\" first";
    bed.check_refused(join, RefusalKind::FailedPrecondition, text);
}
