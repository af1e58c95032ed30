//! The specification: every operation in plain loops with f32 accumulation.
