//! The uplink against a real broker: once each and in order, with poison events, without a network, across restarts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[allow(dead_code, reason = "shared with the tests of the other Kafka parts")]
#[path = "../kafka/support.rs"]
mod broker;
mod faults;
mod poison;
mod restores;
mod sending;
mod support;
