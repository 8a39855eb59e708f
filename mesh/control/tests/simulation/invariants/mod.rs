//! What must hold at every instant, and what once all is healed.

mod agents_know;
mod bounded;
mod converged;
mod forward;
mod unique;

pub use forward::Memory;

use crate::world::World;

pub fn always(world: &mut World) {
    unique::check(&world.store);
    forward::check(&mut world.memory, &world.store);
    agents_know::check(world);
    bounded::check(&world.store);
}

pub fn healed(world: &World) {
    converged::check(world);
}
