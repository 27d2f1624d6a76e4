//! Benches of batches and links, against real servers: Kafka, Redis and an S3 server of their own.

mod batch;
mod cpu;
mod events;
mod metrics;
pub(super) mod outbox;
mod pictures;
mod servers;
pub(super) mod status;
pub(super) mod uplink;
pub(super) mod worker;
