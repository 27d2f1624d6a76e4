//! Durable events out of the appliance, and the state it keeps: no pixels, no GPU, no HTTP.
//!
//! The map:
//!
//! | module | what it is |
//! |---|---|
//! | [`event`] | the versioned records that leave the box |
//! | [`outbox`] | append-before-acknowledge log of events, on disk |
//! | [`state`] | the embedded state store: the content cache |
//!
//! Where the rest belongs as it comes:
//!
//! - what sends events away (Kafka, S3) reads with [`outbox::Reader`] up to
//!   [`outbox::Outbox::last_sequence`] and then calls [`outbox::Outbox::commit`]; it becomes a module
//!   beside [`outbox`] and never a part of it, so that no request can wait for a network;
//! - a second state store (Redis) becomes a sibling of [`state::EmbeddedState`]; the trait over both
//!   comes with it, and batch status and locks with the batches that need them;
//! - batch queues, blob stores and model registries become one module each.

pub mod event;
pub mod outbox;
pub mod state;
