//! HTTP and the OpenAI JSON: requests in, answers and streams out.
//!
//! A call passes [`gate`], its body is read in [`request`], the engine takes it, and [`answer`]
//! writes what comes back.

mod answer;
pub mod app;
mod error;
mod gate;
mod generate;
mod metrics;
mod models;
mod openapi;
mod request;
mod routes;
mod serve;
mod tokenize;

pub use crate::serve::serve;
