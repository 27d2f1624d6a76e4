//! What a transaction holds: records, and where their reader stands.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use super::{Record, watch};
use crate::kafka::Position;
use crate::kafka::errors::refuses_record;
use crate::kafka::watch::Watch;

/// What went wrong inside a transaction, before the position is known.
pub(super) enum Failure {
    /// The client library's own error.
    Client(KafkaError),
    /// A record could not be sent, or came back.
    Record,
    /// The time is up.
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
