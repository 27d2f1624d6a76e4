//! Everything that speaks to Kafka, against a real broker.

mod checks;
#[path = "../contract/queue.rs"]
mod contract;
mod promises;
mod queue;
mod support;
mod transactions;
