//! The appliance: images in, species out. `ARCHITECTURE.md` describes the whole project.
//!
//! A request passes through these modules: [`http`] -> `predict` (cache, single flight) -> `serving` (the one classification
//! path) -> [`inference::lanes`] (decode, preprocess, [`inference::engine`]) -> outbox -> reply. A batch goes [`http`] ->
//! [`batch`] -> queue, and from there to a worker, which classifies through `serving` too. `bootstrap` wires them.
//!
//! The library is for the `weir` binary; what is public beside the command line is for tests and fuzz targets.

// In the private modules `pub` means visible in the crate.
#![allow(unreachable_pub)]

mod background;
pub mod batch;
mod bootstrap;
pub mod cli;
pub mod config;
mod fetch;
pub mod http;
mod low_priority;
pub mod memory;
mod models;
mod pace;
mod predict;
mod rollout;
mod serving;
mod telemetry;
mod values;

/// The version of the appliance, as in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
