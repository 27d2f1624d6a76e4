//! Whether the broker does what Weir needs of it, step by step, for the person who sets it up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use ulid::Ulid;

use super::KafkaConfig;
use super::errors::{Trouble, explain};
use super::position::{committed, hear_out, idle_consumer};
use super::watch::Watch;
use crate::error::{Link, SyncError, SyncResult};

/// One thing that was tried.
#[derive(Debug)]
pub struct CheckStep {
    /// What, with the names it was tried with.
    pub what: String,
    /// What was found, or why not and what to do.
    pub result: SyncResult<String>,
}

/// Logs in, looks for the topics, reads the offsets of the workers' group, and sends a probe through the
/// results topic. Blocks; each step takes at most about `timeout`. Without a login nothing more is tried.
///
/// The probe is written in a transaction that is aborted: readers of committed records never see it.
#[must_use]
pub fn check(config: &KafkaConfig, timeout: Duration) -> Vec<CheckStep> {
    let mut steps = Vec::new();
    let watch = Watch::default();
    let user = if config.user.is_empty() { String::new() } else { format!(" as user {}", config.user) };
    let what = format!("connect to {} over {}{user}", config.bootstrap_servers, config.protocol.name());
    let consumer = match idle_consumer(config, &config.group_id, watch.clone()) {
        Ok(consumer) => consumer,
        Err(error) => return vec![CheckStep { what, result: Err(error) }],
    };
    let connected = log_in(config, &consumer, &watch, timeout);
    let stop = connected.is_err();
    steps.push(CheckStep { what, result: connected });
    if stop {
        return steps;
    }
    let topics = [&config.requests_topic, &config.results_topic];
    for topic in topics {
        let result = find_topic(config, &consumer, topic, timeout)
            .map(|partitions| format!("{partitions} partition{}", if partitions == 1 { "" } else { "s" }));
        steps.push(CheckStep { what: format!("find topic {topic}"), result });
    }
    let missing = steps.iter().any(|step| step.result.is_err());
    if missing {
        return steps;
    }
    let (group, topic) = (&config.group_id, &config.requests_topic);
    let result = committed(config, group, topic, &[0], timeout).map(|found| match found.first() {
        Some(Some(offset)) => format!("partition 0 is done up to offset {offset}"),
        _ => "none yet on partition 0".to_owned(),
    });
    steps.push(CheckStep { what: format!("read the offsets of group {group}"), result });
    let what = format!("write to topic {} in a transaction, and read it back", config.results_topic);
    steps.push(CheckStep { what, result: probe(config, timeout) });
    steps
}

fn log_in(
    config: &KafkaConfig,
    consumer: &BaseConsumer<Watch>,
    watch: &Watch,
    timeout: Duration,
) -> SyncResult<String> {
    match consumer.fetch_metadata(Some(&config.requests_topic), timeout) {
        Ok(metadata) => Ok(format!("brokers: {}", metadata.brokers().len())),
        Err(error) => {
            hear_out(consumer);
            Err(explain(config, "log in", error, Some(watch.trouble())))
        }
    }
}

/// How many partitions a topic has.
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

/// Where the probe arrived.
#[derive(Default)]
struct Arrival {
    trouble: Trouble,
    place: Mutex<Option<Result<(i32, i64), KafkaError>>>,
}

impl ClientContext for Arrival {
    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
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
    let attempt = format!("write to topic {topic} in a transaction");
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
        .map_err(|error| explain(config, &attempt, error, None))?;
    let arrival = Arc::clone(producer.client().context());
    let told = |error| explain(config, &attempt, error, Some(&arrival.trouble));
    producer.init_transactions(timeout).map_err(told)?;
    producer.begin_transaction().map_err(told)?;
    let payload = format!(r#"{{"kind":"doctor","id":"{id}"}}"#);
    producer
        .send(BaseRecord::to(topic).key("weir-doctor").payload(&payload))
        .map_err(|(error, _)| told(error))?;
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
    producer.abort_transaction(timeout).map_err(told)?;
    let (partition, offset) = place.map_err(told)?;
    read_back(config, partition, offset, payload.as_bytes(), timeout)?;
    Ok(format!("partition {partition}, offset {offset}; taken back, so that nobody sees it"))
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
                let error = explain(config, &attempt, error, Some(watch.trouble()));
                if !error.is_transient() {
                    return Err(error);
                }
            }
            Some(Ok(_)) | None => {}
        }
    }
    let what = format!(
        "cannot {attempt} at {}: the probe at {partition}-{offset} did not come back in {timeout:?}",
        config.bootstrap_servers
    );
    Err(SyncError::transient(Link::Kafka, what))
}
