//! Everything that most plugins name.

pub use crate::host::text::{PatternSet, Set, WordSet};
pub use crate::types::*;
pub use crate::{NoConfig, Policy, Setup, config, policy};
