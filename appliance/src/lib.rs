//! The appliance: requests in, species out. `ARCHITECTURE.md` is the map of the whole; this is the map of the daemon.
//!
//! A photo flows through these modules in this order, and never back:
//! [`http`] -> [`predict`] (cache, single flight, admission) -> [`inference::lanes`] (decode, preprocess, [`inference::engine`])
//! -> outbox -> reply. A batch goes [`http`] -> [`batch`] -> queue, and from there to a worker. [`bootstrap`] wires them; [`config`] says what can be set; [`telemetry`] what can be seen.

mod background;
pub mod batch;
pub mod bootstrap;
pub mod cli;
pub mod config;
pub mod fetch;
pub mod http;
mod low_priority;
pub mod memory;
pub mod models;
mod pace;
pub mod predict;
pub mod rollout;
pub mod serving;
pub mod telemetry;

/// The version of the appliance, as in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
