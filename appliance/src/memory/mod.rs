//! What requests may take of the machine's memory for encoded images ([`bodies`]).

pub mod bodies;
mod buffer_pool;

pub use bodies::{BodyMemory, NoRoom, Share};
