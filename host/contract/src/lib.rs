//! Drystone's contract: Plain data and the traits that both halves of the host agree on.
