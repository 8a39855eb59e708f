//! What must hold at every instant, and what once all is healed.

mod agents_know;
mod bounded;
mod converged;
mod forward;
mod members;
mod not_misled;
mod trusted;
mod unique;

use crate::world::World;

/// What the last looks saw.
#[derive(Debug, Default)]
pub struct Memory {
    forward: forward::Memory,
    members: members::Memory,
}

pub fn always(world: &mut World) {
    unique::check(&world.store);
    forward::check(&mut world.memory.forward, &world.store);
    members::check(&mut world.memory.members, &world.store);
    trusted::check(world);
    agents_know::check(world);
    not_misled::check(world);
    bounded::check(&world.store, world.now - bounded::PATIENCE);
}

pub fn healed(world: &World) {
    converged::check(world);
    bounded::check(&world.store, world.now);
}
