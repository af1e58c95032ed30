//! Drystone's kernels: The operations a rank computes with: trait, reference and backends.
