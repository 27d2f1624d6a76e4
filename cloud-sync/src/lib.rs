//! Durable events out of the appliance, batch work in and its results out: no pixels, no GPU, no HTTP.
//!
//! | module | content |
//! |---|---|
//! | [`event`] | the versioned records that leave the box |
//! | [`outbox`] | append-before-acknowledge log of events, on disk |
//! | [`uplink`] | sends events from the outbox to the results topic |
//! | [`queue`] | batch work and its results: embedded, or Kafka |
//! | [`cache`] | the content cache: embedded, or Redis |
//! | [`batch_status`] | the status of batches: embedded, or Redis |
//! | [`redis`] | both of them in Redis |
//! | [`blob`] | objects under keys: a directory, or S3 |
//! | [`registry`] | models and their versions: a directory, or MLflow |
//! | [`capture`] | images for the next training set, spooled and sent to the blob store |
//! | [`kafka`] | settings, transactions and errors of all Kafka clients |
//! | [`durable`], [`quarantine`] | fsync and atomic replacement of files; damaged files |
//! | [`tls`] | trust in the certificates of a CA file |
//! | [`check`] | the steps of a link's check and their outcomes |
//! | [`health`], [`error`], [`backoff`], [`secret`] | health of links, their errors, retry delays; passwords |

pub mod backoff;
pub mod batch_status;
pub mod blob;
pub mod cache;
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
pub mod redis;
pub mod registry;
pub mod secret;
pub mod tls;
pub mod uplink;
