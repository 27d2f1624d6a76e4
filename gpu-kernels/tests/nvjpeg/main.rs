//! JPEGs for nvJPEG: which it may be given, how it is called, and what its answers mean. simulated.c stands in for it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "the lints exempt test functions, but not what they call"
)]

mod batches;
mod drawn;
mod eligibility;
mod errors;
mod photos;
mod simulated;
mod structure;
