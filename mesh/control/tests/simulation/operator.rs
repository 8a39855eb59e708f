//! An operator who promotes, demotes and removes nodes, rotates tokens and roots, and whose managers
//! sometimes move or leave; and what stands in for Raft and the CA.

use shoal_api::{
    LeaveWrite, ManagerAddress, NodeRole, RemoveNodeRequest, RootRotation, SigningCa,
    UpdateClusterRequest, UpdateClusterWrite, UpdateNodeRequest, write::Write,
};
use shoal_control::{Input, Store};

use crate::world::Dice;

/// A wish about nodes or the cluster, right or wrong.
pub fn wish(store: &Store, dice: &mut Dice) -> Option<Write> {
    let nodes: Vec<_> = store.nodes().collect();
    let node = nodes.get(dice.below(nodes.len().max(1)))?;
    let node_id = node.id.clone();
    Some(match dice.below(8) {
        0..=2 => {
            let mut spec = node.spec.clone()?;
            spec.set_role(match spec.role() {
                NodeRole::Worker => NodeRole::Manager,
                NodeRole::Manager => NodeRole::Worker,
            });
            Write::UpdateNode(UpdateNodeRequest {
                node_id,
                version: node.version(),
                spec: Some(spec),
            })
        }
        3 => {
            // Mostly one that may go.
            let workers: Vec<_> = nodes.iter().filter(|node| !node.is_manager()).collect();
            let worker = workers.get(dice.below(nodes.len())).map(|node| node.id.clone());
            let node_id = worker.unwrap_or(node_id);
            let force = dice.below(2) == 0 && nodes.len() > 3;
            Write::RemoveNode(RemoveNodeRequest { node_id, force })
        }
        4 if dice.below(4) == 0 => Write::Leave(LeaveWrite { node_id }),
        4 => Write::Moved(ManagerAddress {
            raft_id: node.manager.as_ref().map_or(0, |manager| manager.raft_id),
            addr: format!("10.99.{}.1:2377", dice.below(256)),
            node_id,
            generation: 1,
        }),
        action => cluster_wish(store, dice, action != 5)?,
    })
}

/// Rolls over to a new root, or rotates the workers' token.
fn cluster_wish(store: &Store, dice: &mut Dice, new_root: bool) -> Option<Write> {
    let cluster = store.cluster()?;
    let root = cluster.root_ca.as_ref()?;
    let mut spec = cluster.spec.clone()?;
    let mut write = UpdateClusterWrite::default();
    if new_root {
        let force = root.last_forced + 1;
        spec.ca.get_or_insert_default().force_rotate = force;
        let next = SigningCa { cert_pem: "CERT".into(), key_pem: "KEY".into() };
        let mut digest = format!("{:064x}", force + 1);
        let mut cross_signed_pem = format!("CROSS {}", root.digest);
        // The present one calls a roll-over off.
        if dice.below(8) == 0 {
            digest.clone_from(&root.digest);
            cross_signed_pem.clear();
        }
        write.rotation = Some(RootRotation { next: Some(next), cross_signed_pem, digest });
        write.signed_by.clone_from(&root.digest);
    } else {
        write.worker_secret = format!("secret{}", dice.below(1_000));
    }
    // A user may have read it some time ago, or be the slower of two.
    let version = cluster.version() - u64::from(dice.one_in(4));
    write.request = Some(UpdateClusterRequest {
        version,
        spec: Some(spec),
        rotate_worker_token: !new_root,
        ..UpdateClusterRequest::default()
    });
    Some(Write::UpdateCluster(write))
}

/// Raft's part: managers that are to leave leave it, sooner or later.
pub fn removed_members(store: &Store, dice: &mut Dice) -> Vec<Input> {
    let leaving = store.nodes().filter(|node| node.role() == NodeRole::Worker);
    let ids = leaving.filter_map(|node| node.manager.as_ref()).map(|manager| manager.raft_id);
    let gone = ids.filter(|_| dice.below(8) == 0);
    gone.map(|raft_id| Input::MemberRemoved { raft_id }).collect()
}

/// A certificate as far as trust goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Root under which it was issued.
    pub issuer: String,
    /// Root that signed the issuer's cross-signed certificate, which is in its chain.
    pub signed_by: String,
}

impl Certificate {
    /// As the leader issues it now.
    pub fn issue(store: &Store) -> Self {
        let root = store.cluster().and_then(|cluster| cluster.root_ca.clone());
        let root = root.expect("there is a root");
        Self { issuer: root.issuer_digest().to_owned(), signed_by: root.digest }
    }
}
