//! The engine's own cost.
fn main() {}
