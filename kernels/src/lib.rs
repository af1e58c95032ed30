//! The operations a rank computes with: one trait, a plain reference, and the fast backends.
//!
//! [`ops::Ops`] is the contract. [`reference`] is its specification in plain loops with f32
//! accumulation; every other backend is held to it by one parity test over one list of shapes.

pub mod ops;
pub mod lora;
pub mod error;
mod element;
mod math;
mod sampling;
pub mod reference;
pub mod cpu;
pub mod cuda;
