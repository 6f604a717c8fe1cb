//! A simulated world for the protocol: two sides with clocks of their own, a network, an arbiter, a toy
//! guest, and everything that can go wrong, all drawn from one seed.
//!
//! [`run`] plays one seed and checks, at every step:
//! - at most one side is live, and each generation has one winner;
//! - no output leaves that the other side, if it may still take over, could not reproduce;
//! - once a side is live, no byte of another side leaves any more;
//! - an output number never leaves with two different values;
//!
//! and in the end, when all faults are healed: the machine runs on somewhere, unless the side that had the
//! right to run it is gone. The state machines are those of the parent module, unchanged.

mod check;
mod dice;
mod guest;
mod plan;
mod world;

pub use plan::{Fault, Plan, Scenario};
pub use world::{Outcome, Violation, World};

/// Plays the world of `seed`.
///
/// # Errors
/// The first property that did not hold.
pub fn run(seed: u64) -> Result<Outcome, Violation> {
    World::new(Plan::from_seed(seed), false).run().0
}

/// Plays the world of `seed` again and returns what happened, line by line.
#[must_use]
pub fn trace(seed: u64) -> Vec<String> {
    World::new(Plan::from_seed(seed), true).run().1
}
