//! Everything that speaks to Kafka, against a real broker.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod checks;
#[path = "../contract/queue.rs"]
mod contract;
mod promises;
mod queue;
mod support;
mod transactions;
