//! The thread that polls: messages in, partitions come and go, how far behind this member is.

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
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of one metadata or watermark query, and the interval between queries while this member has no assignment.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for where the group stands: an open transaction holds the answer up, and nothing is polled meanwhile.
const HELD_UP: Duration = Duration::from_millis(500);
/// Longest single poll: after it the thread sees what has changed.
const POLL: Duration = Duration::from_millis(20);
/// How often a member says that it is there. In the answer it hears that another has come or gone, so this
/// is also how long partitions wait for a new owner.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the thread may poll nothing; librdkafka's own default.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Seconds from 1970 to the year 10000. A time beyond it was not counted in milliseconds, and no date can be made of it.
const LAST_SECOND: u64 = 253_402_300_800;

/// What librdkafka calls back, on the thread that polls.
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
        self.shared.trouble.note(&error, reason);
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Callbacks {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = numbers(list);
                tracing::info!(?partitions, topic = self.shared.config.requests_topic, "partitions are ours");
                self.shared.with(|ledger| ledger.assign(&partitions));
                self.reassigned.store(true, Ordering::Relaxed);
            }
            // Before librdkafka lets go of them, so that nothing of them is committed afterwards.
            Rebalance::Revoke(list) => {
                let partitions = numbers(list);
                tracing::info!(
                    ?partitions,
                    topic = self.shared.config.requests_topic,
                    "partitions have gone"
                );
                self.shared.with(|ledger| ledger.revoke(&partitions));
            }
            Rebalance::Error(error) => tracing::warn!(%error, "the partitions could not be shared out"),
        }
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

/// Runs until the queue is left.
pub(super) fn run(shared: &Arc<Shared>) {
    while shared.phase() == Phase::Open {
        let consumer = match join(shared) {
            Ok(consumer) => Arc::new(consumer),
            Err(error) => {
                down(&shared.health, &error);
                if !shared.pause(POLL_INTERVAL) {
                    break;
                }
                continue;
            }
        };
        shared.set_consumer(Some(Arc::clone(&consumer)));
        poll(shared, &consumer);
        shared.set_consumer(None);
        // The last owner's drop leaves the group; the committer may be that for a moment.
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
    // A session that is longer than this is refused.
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
        // Memory for what is fetched ahead. A larger message comes through all the same, alone.
        .set("queued.max.messages.kbytes", ahead.to_string())
        .set("queued.min.messages", "100")
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.max.bytes", (config.max_message_bytes.max(8 << 20)).to_string())
        // The default waits for a second whenever enough has been fetched ahead.
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.wait.max.ms", "250");
    let attempt = format!("consume topic {} as group {}", config.requests_topic, config.group_id);
    let callbacks = Callbacks { shared: Arc::clone(shared), reassigned: AtomicBool::new(false) };
    let consumer: BaseConsumer<_> =
        client.create_with_context(callbacks).map_err(|error| explain(config, &attempt, error, None))?;
    consumer.subscribe(&[&config.requests_topic]).map_err(|error| explain(config, &attempt, error, None))?;
    Ok(consumer)
}

/// Polls until the queue is left, or this consumer is of no use any more.
fn poll(shared: &Arc<Shared>, consumer: &BaseConsumer<Callbacks>) {
    let mut paused = false;
    let mut look_at = Instant::now();
    while shared.phase() != Phase::Leaving {
        if consumer.context().reassigned.swap(false, Ordering::Relaxed) {
            set_paused(consumer, paused);
            look_at = Instant::now();
        }
        if shared.look(|ledger| ledger.wants_more(paused)) == paused {
            paused = set_paused(consumer, !paused).unwrap_or(paused);
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => take_in(shared, &message),
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                tracing::error!(%error, "the consumer is of no use any more: a new one joins");
                return;
            }
            Some(Err(error)) => shared.trouble.note(&error, ""),
            None => {}
        }
        if Instant::now() >= look_at {
            look_at = Instant::now()
                + match look(shared, consumer) {
                    Look::Known => POLL_INTERVAL,
                    Look::Unknown => METADATA_TIMEOUT,
                    Look::Cut => {
                        tracing::warn!(
                            topic = shared.config.requests_topic,
                            "the broker has lost messages that had come: a new consumer joins"
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

/// The time that a message's milliseconds stand for, unless that can't be.
pub(super) fn time_of(millis: i64) -> Option<SystemTime> {
    let millis = u64::try_from(millis).ok().filter(|millis| millis / 1000 < LAST_SECOND)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

/// Stops or starts fetching from all partitions. `None` when that did not work, and is to be tried again.
fn set_paused(consumer: &BaseConsumer<Callbacks>, pause: bool) -> Option<bool> {
    let all = consumer.assignment().ok()?;
    let done = if pause { consumer.pause(&all) } else { consumer.resume(&all) };
    done.ok().map(|()| pause)
}

/// What the broker said about how it stands.
enum Look {
    /// Where our partitions end.
    Known,
    /// Nothing, or nothing of partitions of ours.
    Unknown,
    /// A partition ends before what has come of it.
    Cut,
}

/// Asks the broker how it stands: for the health of the link, and for what waits.
fn look(shared: &Shared, consumer: &BaseConsumer<Callbacks>) -> Look {
    let partitions = shared.look(|ledger| ledger.partitions());
    let asked = if partitions.is_empty() {
        find_topic(shared, consumer).map(|()| true)
    } else {
        // Each for itself: a transaction that is open on one holds up no other.
        let ends: Vec<_> =
            partitions.iter().map(|&partition| find_end(shared, consumer, partition)).collect();
        ends.into_iter().try_fold(true, |whole, end| Ok(whole & end?))
    };
    match asked {
        Ok(whole) => {
            shared.trouble.clear();
            let known = shared.health.note(Ok(())).is_ok() && !partitions.is_empty();
            match (known, whole) {
                (_, false) => Look::Cut,
                (true, true) => Look::Known,
                (false, true) => Look::Unknown,
            }
        }
        Err(error) => {
            shared.trouble.note(&error, "");
            let attempt = format!("consume topic {}", shared.config.requests_topic);
            let error = explain(&shared.config, &attempt, error, Some(&shared.trouble));
            down(&shared.health, &error);
            Look::Unknown
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

/// Notes where a partition ends, and where the group stands on it if that is not known yet. False when it ends before
/// what has come.
fn find_end(shared: &Shared, consumer: &BaseConsumer<Callbacks>, partition: i32) -> Result<bool, KafkaError> {
    let topic = &shared.config.requests_topic;
    let (low, high) = consumer.fetch_watermarks(topic, partition, METADATA_TIMEOUT)?;
    if shared.look(|ledger| ledger.begin(partition)).is_none() {
        find_begin(shared, consumer, partition, (low, high))?;
    }
    Ok(shared.look(|ledger| ledger.note_end(partition, high)))
}

/// Notes where the group stands on a partition. librdkafka asks too before it begins to read, but when partitions come
/// or go while a transaction holds that answer up, it forgets to ask again and reads from where `auto.offset.reset` says
/// (as of 2.12; rd_kafka_assignment_apply_offsets puts the partition back without its place).
fn find_begin(
    shared: &Shared,
    consumer: &BaseConsumer<Callbacks>,
    partition: i32,
    (low, high): (i64, i64),
) -> Result<(), KafkaError> {
    let topic = &shared.config.requests_topic;
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    let found = consumer.committed_offsets(list, HELD_UP)?;
    let place = found.find_partition(topic, partition);
    if let Some(place) = &place {
        place.error()?;
    }
    let begin = match place.map(|place| place.offset()) {
        // Behind the end after the broker has lost messages: then it is read from where `auto.offset.reset` says.
        Some(Offset::Offset(offset)) if offset <= high => offset.max(low),
        _ => low,
    };
    if shared.with(|ledger| ledger.note_begin(partition, begin)) {
        tracing::warn!(
            topic,
            partition,
            begin,
            "messages came that were done long ago: they are passed over"
        );
        consumer.seek(topic, partition, Offset::Offset(begin), Duration::ZERO)?;
    }
    Ok(())
}
