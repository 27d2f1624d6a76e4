//! The GPU suite: checks and measures everything that runs on an NVIDIA GPU, in one command that needs no network and no
//! compiler. The `gpu` command.
//!
//! [`suite`] runs the sections one after the other on a thread of their own; each is contained, and tells its rows through a
//! [`sheet`]. The [`report`] holds them, prints them and writes them as JSON.

mod about;
mod agreement;
mod args;
mod bandwidth;
mod decode;
mod definition;
mod end_to_end;
mod engine;
mod http;
mod kernel;
mod nvml;
mod pictures;
mod plan;
mod report;
mod sanitizer;
mod setup;
mod sheet;
mod suite;
mod together;

pub use args::{Args, ProviderName};
pub use report::{Outcome, Report, SuiteRow};
pub use suite::Which;
