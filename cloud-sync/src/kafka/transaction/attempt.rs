//! One attempt at a transaction: records and the position of their reader, up to the commit.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use super::{Record, watch};
use crate::error::SyncError;
use crate::kafka::Position;
use crate::kafka::errors::{Watch, refuses_record};

/// Why a group of records was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// This record is refused permanently. Nothing of the group was published: publish it without the record.
    #[error("record {index} of the group is refused")]
    Refused {
        /// Its index in the group.
        index: usize,
        /// The reason.
        #[source]
        error: SyncError,
    },
    /// The consumer group has rebalanced without the member that the position belongs to. Nothing was published.
    #[error("the consumer group has rebalanced")]
    Lost(#[source] SyncError),
    /// Another producer with the same transactional id has fenced this one, or the broker has aborted a transaction
    /// that took too long. The same applies as after [`PublishError::Unknown`].
    #[error("another producer has the same transactional id")]
    Fenced(#[source] SyncError),
    /// Nothing was published, and the client must be recreated, which fences another producer of the same
    /// transactional id: call [`super::TransactionalProducer::recover`] and read the position before the next
    /// attempt. (The client had failed, or the topic accepts smaller batches than those that it was configured for.)
    #[error("the client must be recreated")]
    Anew,
    /// Nothing was published.
    #[error("the group was not published")]
    Failed(#[source] SyncError),
    /// The group was published or not: the connection was lost during the commit. To find out, call
    /// [`super::TransactionalProducer::recover`] until it succeeds, then read the committed position.
    #[error("whether the group was published is unknown")]
    Unknown(#[source] SyncError),
}

/// Failure inside a transaction, before its effect on the position is known.
pub(super) enum Failure {
    /// The client library's own error.
    Client(KafkaError),
    /// A record could not be sent, or was refused.
    Record,
    /// The deadline has passed.
    Late,
}

impl From<KafkaError> for Failure {
    fn from(error: KafkaError) -> Self {
        Self::Client(error)
    }
}

/// One transaction up to its commit.
pub(super) fn fill(
    client: &ThreadedProducer<Watch>,
    topic: &str,
    records: &[Record<'_>],
    position: Option<&Position<'_>>,
    deadline: Instant,
) -> Result<(), Failure> {
    let watch = watch(client);
    watch.take_refused();
    client.begin_transaction()?;
    for (index, record) in records.iter().enumerate() {
        send(client, topic, index, record, deadline)?;
        if watch.has_refused() {
            return Err(Failure::Record);
        }
    }
    if let Some(position) = position {
        client.send_offsets_to_transaction(&position.offsets, position.group, remaining(deadline))?;
    }
    while client.in_flight_count() > 0 {
        if watch.has_refused() {
            return Err(Failure::Record);
        }
        if Instant::now() >= deadline {
            return Err(Failure::Late);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if watch.has_refused() { Err(Failure::Record) } else { Ok(()) }
}

fn send(
    client: &ThreadedProducer<Watch>,
    topic: &str,
    index: usize,
    record: &Record<'_>,
    deadline: Instant,
) -> Result<(), Failure> {
    let id = Header { key: "id", value: Some(record.id) };
    let mut message = BaseRecord::with_opaque_to(topic, index)
        .key(record.key)
        .payload(record.payload)
        .headers(OwnedHeaders::new_with_capacity(1).insert(id));
    loop {
        match client.send(message) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                if watch(client).has_refused() {
                    return Err(Failure::Record);
                }
                if Instant::now() >= deadline {
                    return Err(Failure::Late);
                }
                std::thread::sleep(Duration::from_millis(2));
                message = back;
            }
            Err((KafkaError::MessageProduction(code), _)) if refuses_record(code) => {
                watch(client).refuse(index, code);
                return Err(Failure::Record);
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

pub(super) fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
