//! The rig: drives a built `weir` from outside and measures it.

pub mod bench;
pub mod daemon;
pub mod frames;
pub mod gpu;
pub mod limit;
pub mod load;
pub mod process;
