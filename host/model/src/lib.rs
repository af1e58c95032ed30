//! What one rank computes.
//!
//! [`rank::Rank`] is the whole forward pass; [`layer`], [`attention`] and [`mlp`] are its parts.
//! How a linear layer is cut across ranks is in its type's name in [`linear`], and so is where the
//! base model's collectives happen.

mod attention;
pub mod blueprint;
mod checkpoint;
mod dummy;
pub mod error;
pub mod footprint;
mod head;
pub mod hf;
mod layer;
mod linear;
mod loader;
mod lora;
mod mlp;
mod pass;
pub mod rank;
pub mod room;
mod step;
mod rope;
mod tensors;
mod vocabulary;
pub mod weights;
