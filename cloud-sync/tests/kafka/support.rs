//! Separate topics for each test, and the view of a reader of committed records.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cloud_sync::kafka::{KafkaConfig, SaslMechanism, SecurityProtocol};
use cloud_sync::queue::KafkaQueueConfig;
use cloud_sync::secret::Secret;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use test_services::{Kafka, Services};

/// A unique name on a shared broker.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test-{what}-{}-{}-{next}", std::process::id(), time.as_millis())
}

/// Settings for the broker of `services`, with topics that do not exist yet.
pub(crate) fn config_of(services: &Services) -> KafkaConfig {
    let kafka: &Kafka = services.kafka();
    KafkaConfig {
        bootstrap_servers: kafka.bootstrap.clone(),
        protocol: SecurityProtocol::SaslSsl,
        mechanism: SaslMechanism::ScramSha512,
        user: kafka.user.clone(),
        password: Secret::new(kafka.password()),
        ca_file: Some(kafka.ca_file.clone()),
        requests_topic: unique("requests"),
        results_topic: unique("results"),
        group_id: unique("group"),
        client_id: "weir-test".into(),
        max_message_bytes: 16 * 1024 * 1024,
        session_timeout: Duration::from_secs(30),
    }
}

/// A broker that does not exist: nothing listens on the discard port of this machine.
pub(crate) fn nobody() -> KafkaConfig {
    KafkaConfig {
        bootstrap_servers: "127.0.0.1:9".into(),
        protocol: SecurityProtocol::Plaintext,
        ca_file: None,
        ..config_of(test_services::shared())
    }
}

/// Creates a topic; `settings` are the topic's own.
pub(crate) fn make_topic(config: &KafkaConfig, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin = AdminClient::<DefaultClientContext>::from_config(&config.client()).unwrap();
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    // On a separate thread: the caller may be inside another runtime.
    let make = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(admin.create_topics([&new], &options))
    };
    let made = std::thread::scope(|scope| scope.spawn(make).join().unwrap());
    for result in made.unwrap() {
        result.unwrap();
    }
}

/// Replaces the settings of a topic.
#[allow(dead_code, reason = "not every test that shares this needs it")]
pub(crate) fn set_topic(config: &KafkaConfig, topic: &str, settings: &[(&str, &str)]) {
    let admin = AdminClient::<DefaultClientContext>::from_config(&config.client()).unwrap();
    let mut change = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (key, value) in settings {
        change = change.set(key, value);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for result in runtime.block_on(admin.alter_configs([&change], &AdminOptions::new())).unwrap() {
        result.unwrap();
    }
}

/// A record as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) payload: Vec<u8>,
}

/// All committed records of a topic, in the order of each partition.
pub(crate) fn committed(config: &KafkaConfig, topic: &str) -> Vec<Seen> {
    let mut client = config.client();
    client
        .set("group.id", unique("reader"))
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true");
    let consumer: BaseConsumer = client.create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(60)).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, i32::try_from(partition).unwrap(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut seen, mut ended) = (Vec::new(), 0);
    let late = Instant::now() + Duration::from_secs(60);
    while ended < partitions {
        assert!(Instant::now() < late, "{topic}: no end after {} records", seen.len());
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => panic!("{topic}: {error}"),
            // The client reconnects by itself.
            Some(Err(_)) => {}
            Some(Ok(message)) => {
                let text =
                    |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
                let id =
                    message.headers().and_then(|headers| headers.iter().find(|header| header.key == "id"));
                seen.push(Seen {
                    partition: message.partition(),
                    offset: message.offset(),
                    key: text(message.key()),
                    id: text(id.and_then(|header| header.value)),
                    payload: message.payload().unwrap_or_default().to_vec(),
                });
            }
        }
    }
    seen
}

/// All committed records of a topic once there are at least `count`: the broker answers a commit before the markers of
/// the transaction are visible.
pub(crate) fn committed_when(config: &KafkaConfig, topic: &str, count: usize) -> Vec<Seen> {
    let start = Instant::now();
    loop {
        let seen = committed(config, topic);
        if seen.len() >= count || start.elapsed() > Duration::from_secs(60) {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The ids of all committed records of a topic, sorted.
pub(crate) fn ids(config: &KafkaConfig, topic: &str) -> Vec<String> {
    ids_when(config, topic, 0)
}

/// The ids of all committed records of a topic, sorted, once there are at least `count`.
pub(crate) fn ids_when(config: &KafkaConfig, topic: &str, count: usize) -> Vec<String> {
    let mut ids: Vec<_> = committed_when(config, topic, count).into_iter().map(|seen| seen.id).collect();
    ids.sort();
    ids
}

/// A worker with at most `inflight` jobs in progress.
pub(crate) fn queue_config(inflight: usize) -> KafkaQueueConfig {
    KafkaQueueConfig {
        inflight,
        node: "test".into(),
        submit_timeout: Duration::from_secs(30),
        close_timeout: Duration::from_secs(60),
    }
}
