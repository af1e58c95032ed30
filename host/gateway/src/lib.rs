//! HTTP and the OpenAI JSON: requests in, answers and streams out.
//!
//! A call passes [`gate`], its body is read in [`request`], the engine takes it, and [`answer`]
//! writes what comes back.

mod accepted;
mod admin;
mod answer;
pub mod app;
mod error;
mod gate;
mod generate;
mod hooks;
mod metrics;
mod models;
mod openapi;
mod places;
mod request;
mod routes;
mod serve;
pub mod surroundings;

#[cfg(test)]
mod tests;

// Tests and benches share a harness, which names this crate as others do.
#[cfg(test)]
extern crate self as gateway;
mod tokenize;

pub use crate::serve::{listen, serve};
