//! The drystone binary: builds the parts and wires them.

fn main() {}
