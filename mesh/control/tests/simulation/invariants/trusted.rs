//! No member is ever cut off: its certificate passes with the roots that are trusted now, by its
//! issuer or by the root that signed its issuer across; however roll-overs follow each other, and
//! whichever answers are lost.

use crate::world::World;

pub fn check(world: &World) {
    let Some(root) = world.store.cluster().and_then(|cluster| cluster.root_ca.as_ref()) else {
        return;
    };
    let trusted = root.trusted_digests();
    for agent in world.agents.iter().filter(|agent| world.store.node(&agent.node).is_some()) {
        let certificate = &agent.certificate;
        assert!(
            trusted.contains(&certificate.issuer) || trusted.contains(&certificate.signed_by),
            "{} has {certificate:?}, and trusted are {trusted:?}",
            agent.node
        );
    }
}
