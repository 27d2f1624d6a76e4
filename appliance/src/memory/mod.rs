//! What requests may take of the machine's memory: encoded images ([`bodies`]), and decoding them ([`decode`]).

pub mod bodies;
mod buffers;
pub mod decode;
pub mod limit;

pub use bodies::{BodyMemory, NoRoom, Share};
pub use decode::{DecodeMemory, Room, TooCostly, decode_cost};
