//! The server over a socket, with the real engine and ranks that follow a script.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod client;
mod script;
mod scripted;
mod server;

mod adapters;
mod admin;
mod conduct;
mod hooks;
mod refusals;
mod replicas;
mod routes;
mod streams;
mod upstreams;
mod whole;
