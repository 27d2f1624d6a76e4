//! Tests of decoding and preprocessing through the public interface. Every picture is drawn here.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "the lints exempt test functions, but not what they call"
)]

mod bad_input;
#[path = "../bombs/mod.rs"]
mod bombs;
mod costly;
mod draw;
mod formats;
mod history;
mod hostile;
mod jpeg_damage;
mod jpeg_kinds;
mod kernel;
mod kinship;
mod preprocess;
mod write;
