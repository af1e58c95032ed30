//! Sums and gathers across the ranks of a group, counted by purpose.

mod barrier;
pub mod comm;
pub mod device;
pub mod solo;
pub mod threads;
