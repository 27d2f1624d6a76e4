//! JPEGs for nvJPEG: eligibility, calls, and the meaning of its results. simulated.c is used in place of the library.
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
