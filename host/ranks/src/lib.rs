//! Drystone's ranks: Rank threads and the group that makes them one executor.
