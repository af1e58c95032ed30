//! Drystone's model: What one rank computes.
