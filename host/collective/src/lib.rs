//! Sums and gathers across the ranks of a group, counted by purpose.

pub mod comm;
