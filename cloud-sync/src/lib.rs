//! Durable events out of the appliance, and the state it keeps: no pixels, no GPU, no HTTP.
//!
//! The map:
//!
//! | module | what it is |
//! |---|---|
//! | [`event`] | the versioned records that leave the box |
//! | [`outbox`] | append-before-acknowledge log of events, on disk |
//! | [`uplink`] | from the outbox to the results topic, in its own time |
//! | [`queue`] | batch work and its results: embedded, or Kafka |
//! | [`state`] | the content cache and how far batches are: embedded, or Redis |
//! | [`blob`] | objects under keys: a directory, or S3 |
//! | [`registry`] | models and their versions: a directory, or MLflow |
//! | [`capture`] | images kept for the next training set, spooled and sent to the blob store |
//! | [`kafka`] | what everything that speaks to Kafka shares |
//! | [`tls`] | trust in the certificates that a file names |
//! | [`check`] | what a check of a link found, step by step |
//! | [`health`], [`error`], [`backoff`], [`secret`] | whether a link works, why not, when to try again; passwords |

pub mod backoff;
pub mod blob;
pub mod capture;
pub mod check;
mod database;
pub mod durable;
pub mod error;
pub mod event;
pub mod health;
pub mod kafka;
pub mod outbox;
pub mod quarantine;
pub mod queue;
pub mod registry;
pub mod secret;
pub mod state;
pub mod tls;
pub mod uplink;
