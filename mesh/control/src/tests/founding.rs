//! How a cluster begins, and how one goes on with one manager.

use shoal_api::{ClusterSpec, NodeRole};

use super::{Bed, ROOT, founding, node_request, spec, token_for};
use crate::{Founding, Input, Refusal, Store};

/// What the first write of such a founder gives.
fn found(edit: impl FnOnce(&mut Founding)) -> (Bed, Result<(), Refusal>) {
    let mut bed = Bed::new(0);
    bed.store = Store::default();
    let mut founding = founding("");
    edit(&mut founding);
    let mut step = bed.step(vec![Input::Bootstrap { id: 1, founding: Box::new(founding) }]);
    let refused = step.refused.pop().map_or(Ok(()), |(_, refusal)| Err(refusal));
    (bed, refused)
}

fn check_refused(edit: impl FnOnce(&mut Founding), text: &str) {
    let (bed, refused) = found(edit);
    assert_eq!(refused.unwrap_err().to_string(), text);
    assert_eq!(bed.store, Store::default(), "a refusal leaves nothing behind");
}

#[test]
fn a_cluster_is_what_its_founder_brings() {
    let (bed, refused) = found(|founding| {
        founding.spec = Some(ClusterSpec { autolock: true, ..ClusterSpec::default() });
        founding.unlock_key = "SWMKEY-1-x".into();
        founding.address_pools = vec!["10.20.0.0/16".into(), "10.30.0.0/16".into()];
        founding.subnet_size = 25;
    });
    refused.unwrap();
    let cluster = bed.cluster();
    assert_eq!((cluster.id.as_str(), cluster.name.as_str()), ("c1", "default"));
    assert_eq!(cluster.spec.unwrap().name, "default");
    assert_eq!(cluster.unlock_key, "SWMKEY-1-x");
    assert_eq!(cluster.root_ca.unwrap().tokens.unwrap().worker, token_for(NodeRole::Worker));
    let network = bed.store.ingress_network().unwrap();
    assert_eq!(network.spec.as_ref().unwrap().subnet, "10.20.0.0/25");
    assert_eq!(network.gateway, "10.20.0.1/25");
    let node = bed.node("n1");
    assert_eq!(node.manager.as_ref().unwrap().raft_id, 1);
    let certificate = node.certificate.unwrap();
    assert_eq!((certificate.issuer_digest.as_str(), certificate.role()), (ROOT, NodeRole::Manager));
}

#[test]
fn the_ingress_network_is_dockers_by_default() {
    let (bed, _) = found(|_| {});
    let network = bed.store.ingress_network().unwrap();
    assert_eq!(network.spec.as_ref().unwrap().subnet, "10.0.0.0/24");
}

#[test]
fn a_wrong_founding_founds_nothing() {
    check_refused(
        |founding| {
            founding.spec = Some(ClusterSpec { name: "prod".into(), ..ClusterSpec::default() });
        },
        "swarm spec must be named \"default\"",
    );
    check_refused(|founding| founding.subnet_size = 30, "subnet size is out of range: 30");
    check_refused(
        |founding| {
            founding.address_pools = vec!["10.20.0.0/26".into()];
        },
        "invalid CIDR: \"10.20.0.0/26\". Subnet size is too small for pool: 24",
    );
    check_refused(
        |founding| founding.node.data_path_addr = "here".into(),
        "invalid address \"here\": the data path needs an IP address without a port",
    );
    check_refused(
        |founding| founding.unlock_key = "SWMKEY-1-x".into(),
        "an unlock key goes with autolock, and autolock with an unlock key",
    );
}

#[test]
fn what_a_founder_brings_shows_no_secret() {
    let mut founding = founding("");
    founding.unlock_key = "SWMKEY-1-x".into();
    let shown = format!("{founding:?}");
    let secrets = ["SWMKEY", "KEY\"", "secret0"];
    assert!(secrets.iter().all(|secret| !shown.contains(secret)), "{shown}");
}

/// The store of a cluster with three managers and a worker, before the disaster.
fn disaster() -> Bed {
    let mut bed = Bed::new(4);
    for node in ["n2", "n3"] {
        bed.set_role(node, NodeRole::Manager).unwrap();
    }
    bed.create(spec("web", 4, &[(8080, 80)])).unwrap();
    bed.run_all("web");
    bed
}

#[test]
fn one_manager_goes_on_with_workers_services_and_addresses_as_they_were() {
    let mut bed = disaster();
    let before = bed.store.clone();
    let mut node = node_request("n2", NodeRole::Manager);
    node.addr = "10.99.0.2:2377".into();
    let step = bed.step(vec![Input::ForceNew { id: 1, node: node.clone(), raft_id: 4 }]);
    assert_eq!(step.refused, []);
    for lost in ["n1", "n3"] {
        assert_eq!((bed.node(lost).role(), bed.node(lost).manager), (NodeRole::Worker, None));
    }
    let manager = bed.node("n2").manager.unwrap();
    assert_eq!((manager.raft_id, manager.addr.as_str()), (4, "10.99.0.2:2377"));
    assert_eq!(bed.cluster().root_ca, before.cluster().unwrap().root_ca);
    assert_eq!(bed.store.services().collect::<Vec<_>>(), before.services().collect::<Vec<_>>());
    assert_eq!(bed.store.tasks().collect::<Vec<_>>(), before.tasks().collect::<Vec<_>>());
    assert_eq!(bed.store.nodes().count(), 4);
    // Asking again changes nothing, and the next manager gets the next id.
    let index = bed.store.index();
    bed.step(vec![Input::ForceNew { id: 2, node, raft_id: 4 }]);
    assert_eq!(bed.store.index(), index);
    bed.set_role("n1", NodeRole::Manager).unwrap();
    assert_eq!(bed.node("n1").manager.unwrap().raft_id, 5);
}

#[test]
fn a_manager_that_was_demoted_meanwhile_may_be_the_one() {
    let mut bed = disaster();
    bed.set_role("n3", NodeRole::Worker).unwrap();
    let node = node_request("n3", NodeRole::Manager);
    bed.step(vec![Input::ForceNew { id: 1, node, raft_id: 4 }]);
    assert_eq!(bed.node("n3").role(), NodeRole::Manager);
    assert_eq!(bed.node("n3").manager.unwrap().raft_id, 4);
}
