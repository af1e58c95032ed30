//! What guests may call, one file for each kind of thing they ask for.

mod ambient;
mod system;
mod tables;
mod text;
mod values;
