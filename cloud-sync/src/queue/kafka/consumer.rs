//! The polling thread: fetches messages, handles assignments, measures the lag of this member.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::shared::{Phase, Shared};
use crate::error::SyncResult;
use crate::kafka::{down, explain};

/// Interval between queries of the partitions' end offsets.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of one metadata or watermark query, and the interval between queries while this member has no assignment.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum wait for the group's committed offset: an open transaction delays the response, and nothing is polled
/// meanwhile.
const OFFSETS_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum duration of one poll: after it the thread handles other changes.
const POLL_TIMEOUT: Duration = Duration::from_millis(20);
/// Heartbeat interval. The response reports members that have joined or left, so this is also how long partitions
/// wait for a new owner.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Maximum time between polls; librdkafka's own default.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Seconds from 1970 to the year 10000. A later time was not in milliseconds, and has no date.
const LAST_SECOND: u64 = 253_402_300_800;

/// Callbacks of librdkafka, on the polling thread.
pub(super) struct Callbacks {
    shared: Arc<Shared>,
    /// New partitions are never paused.
    reassigned: AtomicBool,
}

impl ClientContext for Callbacks {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.shared.client_errors.note(&error, reason);
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Callbacks {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = numbers(list);
                tracing::info!(?partitions, topic = self.shared.config.requests_topic, "partitions assigned");
                self.shared.with(|ledger| ledger.assign(&partitions));
                self.reassigned.store(true, Ordering::Relaxed);
            }
            // Before librdkafka gives them up, so that nothing of them is committed afterwards.
            Rebalance::Revoke(list) => {
                let partitions = numbers(list);
                tracing::info!(?partitions, topic = self.shared.config.requests_topic, "partitions revoked");
                self.shared.with(|ledger| ledger.revoke(&partitions));
            }
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance failed"),
        }
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

/// Runs until the group is left.
pub(super) fn run(shared: &Arc<Shared>) {
    while shared.phase() == Phase::Open {
        let consumer = match join(shared) {
            Ok(consumer) => Arc::new(consumer),
            Err(error) => {
                down(&shared.health, &error);
                if !shared.pause(LAG_INTERVAL) {
                    break;
                }
                continue;
            }
        };
        shared.set_consumer(Some(Arc::clone(&consumer)));
        poll(shared, &consumer);
        shared.set_consumer(None);
        // The last owner's drop leaves the group; that may briefly be the committer.
        drop(consumer);
        shared.with(|ledger| {
            let all = ledger.partitions();
            ledger.revoke(&all);
        });
    }
}

pub(super) fn join(shared: &Arc<Shared>) -> SyncResult<BaseConsumer<Callbacks>> {
    let config = &shared.config;
    let mut client = config.client();
    let ahead = (config.max_message_bytes / 1024).max(8 * 1024);
    let heartbeat = HEARTBEAT.min(config.session_timeout / 4);
    // A session timeout above this is refused.
    let pause = MAX_PAUSE.max(config.session_timeout);
    client
        .set("group.id", &config.group_id)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", config.session_timeout.as_millis().to_string())
        .set("heartbeat.interval.ms", heartbeat.as_millis().max(1).to_string())
        .set("max.poll.interval.ms", pause.as_millis().to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // Memory for prefetched messages. A larger message is fetched anyway, alone.
        .set("queued.max.messages.kbytes", ahead.to_string())
        .set("queued.min.messages", "100")
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.max.bytes", (config.max_message_bytes.max(8 << 20)).to_string())
        // By default librdkafka waits for a second whenever enough has been prefetched.
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.wait.max.ms", "250");
    let attempt = format!("consume topic {} as group {}", config.requests_topic, config.group_id);
    let callbacks = Callbacks { shared: Arc::clone(shared), reassigned: AtomicBool::new(false) };
    let consumer: BaseConsumer<_> =
        client.create_with_context(callbacks).map_err(|error| explain(config, &attempt, error, None))?;
    consumer.subscribe(&[&config.requests_topic]).map_err(|error| explain(config, &attempt, error, None))?;
    Ok(consumer)
}

/// Polls until the group is left, or this consumer is unusable.
fn poll(shared: &Arc<Shared>, consumer: &BaseConsumer<Callbacks>) {
    let mut paused = false;
    let mut look_at = Instant::now();
    while shared.phase() != Phase::Leaving {
        if consumer.context().reassigned.swap(false, Ordering::Relaxed) {
            set_paused(consumer, paused);
            look_at = Instant::now();
        }
        if shared.read(|ledger| ledger.wants_more(paused)) == paused {
            paused = set_paused(consumer, !paused).unwrap_or(paused);
        }
        match consumer.poll(POLL_TIMEOUT) {
            Some(Ok(message)) => take_in(shared, &message),
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                tracing::error!(%error, "the consumer has failed; starting a new one");
                return;
            }
            Some(Err(error)) => shared.client_errors.note(&error, ""),
            None => {}
        }
        if Instant::now() >= look_at {
            look_at = Instant::now()
                + match query_lag(shared, consumer) {
                    Lag::Known => LAG_INTERVAL,
                    Lag::Unknown => METADATA_TIMEOUT,
                    Lag::Truncated => {
                        tracing::warn!(
                            topic = shared.config.requests_topic,
                            "the broker has lost received messages; starting a new consumer"
                        );
                        return;
                    }
                };
        }
    }
}

fn take_in(shared: &Shared, message: &BorrowedMessage<'_>) {
    let payload = Bytes::copy_from_slice(message.payload().unwrap_or_default());
    let time = message.timestamp().to_millis().and_then(time_of);
    let key = message.key().unwrap_or_default();
    shared.with(|ledger| ledger.take_in(message.partition(), message.offset(), key, payload, time));
}

/// The time of a message's timestamp in milliseconds, unless it is invalid.
pub(super) fn time_of(millis: i64) -> Option<SystemTime> {
    let millis = u64::try_from(millis).ok().filter(|millis| millis / 1000 < LAST_SECOND)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

/// Pauses or resumes fetching from all partitions. `None` on failure: to be retried.
fn set_paused(consumer: &BaseConsumer<Callbacks>, pause: bool) -> Option<bool> {
    let all = consumer.assignment().ok()?;
    let done = if pause { consumer.pause(&all) } else { consumer.resume(&all) };
    done.ok().map(|()| pause)
}

/// Result of a query of the lag.
enum Lag {
    /// The end offsets of our partitions.
    Known,
    /// Nothing, or nothing about our partitions.
    Unknown,
    /// A partition ends before messages that have arrived.
    Truncated,
}

/// Queries the lag: for the health of the link, and for the number of waiting jobs.
fn query_lag(shared: &Shared, consumer: &BaseConsumer<Callbacks>) -> Lag {
    let partitions = shared.read(|ledger| ledger.partitions());
    let queried = if partitions.is_empty() {
        find_topic(shared, consumer).map(|()| true)
    } else {
        // One by one: an open transaction on one delays no other.
        let ends: Vec<_> =
            partitions.iter().map(|&partition| find_end(shared, consumer, partition)).collect();
        ends.into_iter().try_fold(true, |whole, end| Ok(whole & end?))
    };
    match queried {
        Ok(whole) => {
            shared.client_errors.clear();
            let known = shared.health.note(Ok(())).is_ok() && !partitions.is_empty();
            match (known, whole) {
                (_, false) => Lag::Truncated,
                (true, true) => Lag::Known,
                (false, true) => Lag::Unknown,
            }
        }
        Err(error) => {
            shared.client_errors.note(&error, "");
            let attempt = format!("consume topic {}", shared.config.requests_topic);
            let error = explain(&shared.config, &attempt, error, Some(&shared.client_errors));
            down(&shared.health, &error);
            Lag::Unknown
        }
    }
}

fn find_topic(shared: &Shared, consumer: &BaseConsumer<Callbacks>) -> Result<(), KafkaError> {
    let topic = &shared.config.requests_topic;
    let metadata = consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT)?;
    match metadata.topics().first().and_then(rdkafka::metadata::MetadataTopic::error) {
        Some(code) => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::from(code))),
        None => Ok(()),
    }
}

/// Records the end offset of a partition, and the group's offset on it if that is not known yet. False when it ends
/// before messages that have arrived.
fn find_end(shared: &Shared, consumer: &BaseConsumer<Callbacks>, partition: i32) -> Result<bool, KafkaError> {
    let topic = &shared.config.requests_topic;
    let (low, high) = consumer.fetch_watermarks(topic, partition, METADATA_TIMEOUT)?;
    if shared.read(|ledger| ledger.begin(partition)).is_none() {
        find_begin(shared, consumer, partition, (low, high))?;
    }
    Ok(shared.read(|ledger| ledger.note_end(partition, high)))
}

/// Records the group's offset on a partition. librdkafka queries it too before it starts to read, but when
/// assignments change while a transaction delays the response, it forgets to retry and reads from where
/// `auto.offset.reset` says (as of 2.12; rd_kafka_assignment_apply_offsets re-adds the partition without its offset).
fn find_begin(
    shared: &Shared,
    consumer: &BaseConsumer<Callbacks>,
    partition: i32,
    (low, high): (i64, i64),
) -> Result<(), KafkaError> {
    let topic = &shared.config.requests_topic;
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    let found = consumer.committed_offsets(list, OFFSETS_TIMEOUT)?;
    let place = found.find_partition(topic, partition);
    if let Some(place) = &place {
        place.error()?;
    }
    let begin = match place.map(|place| place.offset()) {
        // Beyond the end after the broker has lost messages: then it is read from where `auto.offset.reset` says.
        Some(Offset::Offset(offset)) if offset <= high => offset.max(low),
        _ => low,
    };
    if shared.with(|ledger| ledger.note_begin(partition, begin)) {
        tracing::warn!(
            topic,
            partition,
            begin,
            "received messages that were already committed; skipping them"
        );
        consumer.seek(topic, partition, Offset::Offset(begin), Duration::ZERO)?;
    }
    Ok(())
}
