//! The simulation tier: five whole nodes, real clients, one seed. Everything that a node takes from the
//! world (sockets, wall clock, disk, randomness, threads) comes from here instead, so that hours of faults
//! pass in minutes and a failing run can be had again, byte for byte.
//!
//! - [`network`], [`clock`], [`disk`]: the world of a node; [`cluster`]: the nodes in it;
//! - [`plan`], [`nemesis`]: what goes wrong, decided from the seed, and how it is done;
//! - [`load`]: the clients, and what they demand in the end; [`scratch`]: namespaces that are deleted on the
//!   way; [`verdict`]: the judgement;
//! - [`seed`]: one run; [`trace`]: what two runs are compared by.

pub mod clock;
pub mod cluster;
pub mod disk;
pub mod load;
pub mod nemesis;
pub mod network;
pub mod plan;
pub mod scratch;
pub mod seed;
pub mod trace;
pub mod verdict;

pub use seed::{Options, Run, run};
pub use verdict::Summary;

/// A seed of its own for each use: SplitMix64, a bijection for every `salt`.
pub fn mix(seed: u64, salt: u64) -> u64 {
    let mut bits = seed.wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
