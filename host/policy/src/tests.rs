//! The host against guests that behave and guests that do not.

mod guest;
mod limits;
mod loading;
mod rig;
mod swaps;
mod trials;
