//! Checks step by step whether the broker meets Weir's requirements.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use ulid::Ulid;

use super::errors::{ClientErrors, Watch, explain};
use super::position::{committed, drain_reports, idle_consumer};
use super::{KafkaConfig, Position};
use crate::check::{CheckStep, Steps};
use crate::error::{Link, SyncError, SyncResult};

/// Logs in, finds the topics, reads the offsets of the workers' group, and sends a probe through the results topic.
/// With `batches`, the queue is in Kafka: then the requests topic is written and read too, and the group's right to
/// commit is checked. Blocks; each step takes about at most `timeout`. If the login fails nothing more is tried.
///
/// Everything is written and committed in a transaction that is aborted: readers of committed records never see it,
/// the group's offsets do not change, and nobody joins it.
#[must_use]
pub fn check(config: &KafkaConfig, batches: bool, timeout: Duration) -> Vec<CheckStep> {
    let mut steps = Steps::default();
    let watch = Watch::default();
    let user = if config.user.is_empty() { String::new() } else { format!(" as user {}", config.user) };
    let what = format!("connect to {} over {}{user}", config.bootstrap_servers, config.protocol.name());
    let connected = idle_consumer(config, &config.group_id, watch.clone()).and_then(|consumer| {
        let brokers = log_in(config, &consumer, &watch, timeout)?;
        Ok((consumer, brokers))
    });
    let remark = |(_, brokers): &(BaseConsumer<Watch>, usize)| format!("brokers: {brokers}");
    let Some((consumer, _)) = steps.note(what, connected, remark) else { return steps.finish() };
    let mut missing = false;
    for topic in [&config.requests_topic, &config.results_topic] {
        let found = find_topic(config, &consumer, topic, timeout);
        let remark =
            |partitions: &usize| format!("{partitions} partition{}", if *partitions == 1 { "" } else { "s" });
        missing |= steps.note(format!("find topic {topic}"), found, remark).is_none();
    }
    if missing {
        return steps.finish();
    }
    let (group, topic) = (&config.group_id, &config.requests_topic);
    let offsets = committed(config, group, topic, &[0], timeout);
    steps.note(format!("read the offsets of group {group}"), offsets, |found| match found.first() {
        Some(Some(offset)) => format!("partition 0 is done up to offset {offset}"),
        _ => "none yet on partition 0".to_owned(),
    });
    if batches {
        let what = format!("submit to topic {topic}, as the API does, in a transaction that is aborted");
        steps.note(what, submit(config, timeout), String::clone);
        let what = format!("read topic {topic} as group {group}, as a worker does");
        steps.note(what, consume(config, &consumer, timeout), String::clone);
    }
    let what = format!("write to topic {} in a transaction, and read it back", config.results_topic);
    steps.note(what, probe(config, timeout), String::clone);
    steps.finish()
}

/// Returns the number of brokers.
fn log_in(
    config: &KafkaConfig,
    consumer: &BaseConsumer<Watch>,
    watch: &Watch,
    timeout: Duration,
) -> SyncResult<usize> {
    match consumer.fetch_metadata(Some(&config.requests_topic), timeout) {
        Ok(metadata) => Ok(metadata.brokers().len()),
        Err(error) => {
            drain_reports(consumer);
            Err(explain(config, "log in", error, Some(watch.client_errors())))
        }
    }
}

/// Number of partitions of a topic.
fn find_topic(
    config: &KafkaConfig,
    consumer: &BaseConsumer<Watch>,
    topic: &str,
    timeout: Duration,
) -> SyncResult<usize> {
    let explain = |error| explain(config, &format!("find topic {topic}"), error, None);
    let metadata = consumer.fetch_metadata(Some(topic), timeout).map_err(explain)?;
    let Some(found) = metadata.topics().first() else {
        return Err(explain(KafkaError::MetadataFetch(Code::UnknownTopic)));
    };
    match found.error() {
        Some(code) => Err(explain(KafkaError::MetadataFetch(code.into()))),
        None => Ok(found.partitions().len()),
    }
}

/// Delivery report of the probe.
#[derive(Default)]
struct Arrival {
    client_errors: ClientErrors,
    place: Mutex<Option<Result<(i32, i64), KafkaError>>>,
}

impl ClientContext for Arrival {
    fn error(&self, error: KafkaError, reason: &str) {
        self.client_errors.note(&error, reason);
    }
}

impl ProducerContext for Arrival {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let place = result.as_ref().map(|message| (message.partition(), message.offset()));
        *self.place.lock() = Some(place.map_err(|(error, _)| error.clone()));
    }
}

fn probe(config: &KafkaConfig, timeout: Duration) -> SyncResult<String> {
    let topic = &config.results_topic;
    let payload = probe_payload();
    let (partition, offset) = write_and_abort(config, topic, &payload, timeout)?;
    read_back(config, partition, offset, payload.as_bytes(), timeout)?;
    Ok(format!("partition {partition}, offset {offset}; aborted, so that no consumer sees it"))
}

fn submit(config: &KafkaConfig, timeout: Duration) -> SyncResult<String> {
    let (partition, offset) = write_and_abort(config, &config.requests_topic, &probe_payload(), timeout)?;
    Ok(format!("partition {partition}, offset {offset}; no worker sees it"))
}

fn probe_payload() -> String {
    format!(r#"{{"kind":"doctor","id":"{}"}}"#, Ulid::generate())
}

fn producer_of(
    config: &KafkaConfig,
    attempt: &str,
    timeout: Duration,
) -> SyncResult<ThreadedProducer<Arrival>> {
    let id = format!("weir-doctor-{}", Ulid::generate());
    let mut client = config.client();
    client
        .set("transactional.id", &id)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("transaction.timeout.ms", timeout.as_millis().max(1000).to_string())
        .set("message.timeout.ms", timeout.as_millis().max(1000).to_string());
    let producer: ThreadedProducer<Arrival> = client
        .create_with_context(Arrival::default())
        .map_err(|error| explain(config, attempt, error, None))?;
    let explained = |error| explain(config, attempt, error, Some(&producer.client().context().client_errors));
    producer.init_transactions(timeout).map_err(explained)?;
    producer.begin_transaction().map_err(explained)?;
    Ok(producer)
}

/// Writes a record in a transaction that is aborted, and returns its partition and offset.
fn write_and_abort(
    config: &KafkaConfig,
    topic: &str,
    payload: &str,
    timeout: Duration,
) -> SyncResult<(i32, i64)> {
    let attempt = format!("write to topic {topic} in a transaction");
    let producer = producer_of(config, &attempt, timeout)?;
    let arrival = Arc::clone(producer.client().context());
    let explained = |error| explain(config, &attempt, error, Some(&arrival.client_errors));
    producer
        .send(BaseRecord::to(topic).key("weir-doctor").payload(payload))
        .map_err(|(error, _)| explained(error))?;
    let deadline = Instant::now() + timeout;
    let place = loop {
        if let Some(place) = arrival.place.lock().take() {
            break place;
        }
        if Instant::now() >= deadline {
            break Err(KafkaError::MessageProduction(Code::MessageTimedOut));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let aborted = producer.abort_transaction(timeout);
    // First: the error of an abort after a refused record is less specific.
    let place = place.map_err(explained)?;
    aborted.map_err(explained)?;
    Ok(place)
}

/// Checks the rights of a worker without being one: fetches from the topic, and commits offsets for the group in a
/// transaction that is aborted.
fn consume(config: &KafkaConfig, group: &BaseConsumer<Watch>, timeout: Duration) -> SyncResult<String> {
    let topic = &config.requests_topic;
    let found = fetch_one(config, timeout)?;
    let attempt = format!("commit offsets of topic {topic} for group {}", config.group_id);
    let producer = producer_of(config, &attempt, timeout)?;
    let explained =
        |error| explain(config, &attempt, error, Some(&producer.client().context().client_errors));
    let metadata = group.group_metadata().ok_or_else(|| {
        SyncError::permanent(Link::Kafka, format!("cannot {attempt}: the client has no group"))
    })?;
    let position = Position::new(&metadata, topic, &[(0, 0)])?;
    let sent = producer.send_offsets_to_transaction(&position.offsets, position.group, timeout);
    let aborted = producer.abort_transaction(timeout);
    sent.map_err(explained)?;
    aborted.map_err(explained)?;
    Ok(format!("{found}; the group may commit; its offsets are unchanged"))
}

/// Fetches the first message of partition 0 of the requests topic. A consumer with a manual assignment joins no
/// group.
fn fetch_one(config: &KafkaConfig, timeout: Duration) -> SyncResult<&'static str> {
    let topic = &config.requests_topic;
    let attempt = format!("read topic {topic}");
    let watch = Watch::default();
    let explained = |error| explain(config, &attempt, error, Some(watch.client_errors()));
    let mut client = config.client();
    client
        .set("group.id", &config.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed");
    let consumer: BaseConsumer<Watch> = client.create_with_context(watch.clone()).map_err(explained)?;
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(topic, 0, Offset::Beginning)
        .and_then(|()| consumer.assign(&list))
        .map_err(explained)?;
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(_)) => return Ok("partition 0 has messages"),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok("partition 0 is empty"),
            Some(Err(error)) => {
                let error = explained(error);
                if !error.is_transient() {
                    return Err(error);
                }
            }
            None => {}
        }
    }
    let what = format!("cannot {attempt} at {}: no message within {timeout:?}", config.bootstrap_servers);
    Err(SyncError::transient(Link::Kafka, what))
}

fn read_back(
    config: &KafkaConfig,
    partition: i32,
    offset: i64,
    payload: &[u8],
    timeout: Duration,
) -> SyncResult<()> {
    let topic = &config.results_topic;
    let attempt = format!("read topic {topic}");
    let watch = Watch::default();
    let mut client = config.client();
    client
        .set("group.id", &config.group_id)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_uncommitted");
    let consumer: BaseConsumer<Watch> =
        client.create_with_context(watch.clone()).map_err(|error| explain(config, &attempt, error, None))?;
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(topic, partition, Offset::Offset(offset))
        .and_then(|()| consumer.assign(&list))
        .map_err(|error| explain(config, &attempt, error, None))?;
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) if message.payload() == Some(payload) => return Ok(()),
            Some(Err(error)) => {
                let error = explain(config, &attempt, error, Some(watch.client_errors()));
                if !error.is_transient() {
                    return Err(error);
                }
            }
            Some(Ok(_)) | None => {}
        }
    }
    let what = format!(
        "cannot {attempt} at {}: the probe at {partition}-{offset} was not read within {timeout:?}",
        config.bootstrap_servers
    );
    Err(SyncError::transient(Link::Kafka, what))
}
