//! Drystone's engine: Sequences, scheduling, sampling settings, text, and the loop.
