//! Offsets that are committed in the same transaction as published records.

use std::fmt;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaConfig;
use super::errors::Watch;
use super::errors::explain;
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;

/// Offsets of a consumer group, to be committed with a transaction.
pub struct Position<'a> {
    pub(super) group: &'a ConsumerGroupMetadata,
    pub(super) offsets: TopicPartitionList,
}

impl<'a> Position<'a> {
    /// `offsets` are pairs of a partition and the offset of the next message that the group has to process.
    pub(crate) fn new(
        group: &'a ConsumerGroupMetadata,
        topic: &str,
        offsets: &[(i32, i64)],
    ) -> SyncResult<Self> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(partition, offset) in offsets {
            list.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(|error| {
                let what = format!("offset {offset} of {topic}-{partition} cannot be committed");
                SyncError::permanent(Link::Kafka, what).because(error)
            })?;
        }
        Ok(Self { group, offsets: list })
    }
}

impl fmt::Debug for Position<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Position({:?})", self.offsets)
    }
}

/// Content of a bookmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The number.
    pub value: i64,
    /// The text beside it: the offset's metadata.
    pub note: String,
}

/// A number stored by the broker that changes in the same transaction as the records it stands for: the committed
/// offset of a dedicated group on partition 0 of a topic.
///
/// A process that was killed between publishing and recording what was published reads it after its restart. The
/// group has no members; Kafka deletes it when it has not changed for `offsets.retention.minutes` (7 days).
pub struct Bookmark {
    config: KafkaConfig,
    group: String,
    topic: String,
    health: LinkHealth,
    metadata: ConsumerGroupMetadata,
}

impl fmt::Debug for Bookmark {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Bookmark({} on {})", self.group, self.topic)
    }
}

impl Bookmark {
    /// The bookmark of `group` on `topic`. Needs no broker.
    ///
    /// # Errors
    /// When the settings of the client are refused (permanent).
    pub fn new(config: &KafkaConfig, group: &str, topic: &str, health: LinkHealth) -> SyncResult<Self> {
        let consumer = idle_consumer(config, group, Watch::default())?;
        let metadata = consumer.group_metadata().ok_or_else(|| {
            SyncError::permanent(Link::Kafka, format!("the client has no consumer group `{group}`"))
        })?;
        let (group, topic) = (group.to_owned(), topic.to_owned());
        Ok(Self { config: config.clone(), group, topic, health, metadata })
    }

    /// The number; `None` when there is none yet. Waits for an open transaction that changes it, at most `timeout`:
    /// first call [`super::TransactionalProducer::recover`], which ends the caller's own.
    ///
    /// # Errors
    /// When the broker is unavailable, or refuses.
    pub fn read(&self, timeout: Duration) -> SyncResult<Option<Mark>> {
        let found = committed_marks(&self.config, &self.group, &self.topic, &[0], timeout);
        Ok(self.health.note(found)?.pop().flatten())
    }

    /// The position that sets the number to `value` and the text beside it (at most 4 KiB by default), for
    /// [`super::TransactionalProducer::publish`].
    ///
    /// # Errors
    /// When `value` is negative (permanent).
    pub fn at(&self, value: i64, note: &str) -> SyncResult<Position<'_>> {
        if value < 0 {
            let what = format!("a bookmark cannot be {value}: offsets start at 0");
            return Err(SyncError::permanent(Link::Kafka, what));
        }
        let position = Position::new(&self.metadata, &self.topic, &[(0, value)])?;
        if let Some(mut offset) = position.offsets.find_partition(&self.topic, 0) {
            offset.set_metadata(note);
        }
        Ok(position)
    }
}

/// The committed offsets of `group`, one per partition. Waits for open transactions.
///
/// # Errors
/// When the broker is unavailable for `timeout`, or refuses.
pub(crate) fn committed(
    config: &KafkaConfig,
    group: &str,
    topic: &str,
    partitions: &[i32],
    timeout: Duration,
) -> SyncResult<Vec<Option<i64>>> {
    let marks = committed_marks(config, group, topic, partitions, timeout)?;
    Ok(marks.into_iter().map(|mark| mark.map(|mark| mark.value)).collect())
}

fn committed_marks(
    config: &KafkaConfig,
    group: &str,
    topic: &str,
    partitions: &[i32],
    timeout: Duration,
) -> SyncResult<Vec<Option<Mark>>> {
    let watch = Watch::default();
    let consumer = idle_consumer(config, group, watch.clone())?;
    let attempt = format!("read the offsets of group {group} on topic {topic}");
    let deadline = Instant::now() + timeout;
    let found = loop {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(topic, partition);
        }
        match consumer.committed_offsets(list, deadline.saturating_duration_since(Instant::now())) {
            Ok(found) => break found,
            // The group's first use: its coordinator is being elected.
            Err(error) if is_settling(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => {
                drain_reports(&consumer);
                return Err(explain(config, &attempt, error, Some(watch.client_errors())));
            }
        }
    };
    let mut offsets = Vec::with_capacity(partitions.len());
    for &partition in partitions {
        let place = found.find_partition(topic, partition);
        if let Some(Err(error)) =
            place.as_ref().map(rdkafka::topic_partition_list::TopicPartitionListElem::error)
        {
            return Err(explain(config, &attempt, error, None));
        }
        offsets.push(place.and_then(|place| match place.offset() {
            Offset::Offset(value) => Some(Mark { value, note: place.metadata().to_owned() }),
            _ => None,
        }));
    }
    Ok(offsets)
}

fn is_settling(error: &KafkaError) -> bool {
    let settling = [Code::NotCoordinator, Code::CoordinatorNotAvailable, Code::CoordinatorLoadInProgress];
    error.rdkafka_error_code().is_some_and(|code| settling.contains(&code))
}

/// Polls until the queued reports of the client's threads have been handled.
pub(super) fn drain_reports(consumer: &BaseConsumer<Watch>) {
    // Until a poll returns nothing: one that handles a log line also returns nothing.
    for _ in 0..20 {
        consumer.poll(Duration::from_millis(5));
    }
}

/// A consumer with the id of `group` that does not join it.
pub(super) fn idle_consumer(
    config: &KafkaConfig,
    group: &str,
    watch: Watch,
) -> SyncResult<BaseConsumer<Watch>> {
    let mut client = config.client();
    client.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    client
        .create_with_context(watch)
        .map_err(|error| explain(config, &format!("set up a client of group {group}"), error, None))
}
