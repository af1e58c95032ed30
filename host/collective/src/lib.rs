//! Drystone's collective: Sums and gathers across the ranks of a group.
