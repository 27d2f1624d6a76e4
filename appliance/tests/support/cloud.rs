//! The cloud servers for tests of the whole daemon: separate names on real servers, workers, and the content of topics.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, TopicPartitionList};
use serde_json::Value;
use tempfile::TempDir;
use test_services::Services;

use super::load::wait_until;
use super::{Daemon, weir};

/// Partitions of the topics, as the deployment has them.
pub const PARTITIONS: i32 = 3;

/// Unique topics, Redis prefix and S3 prefix on servers that may be shared.
pub struct Cloud<'a> {
    pub services: &'a Services,
    pub requests: String,
    pub results: String,
    pub name: String,
}

impl<'a> Cloud<'a> {
    pub fn new(services: &'a Services) -> Self {
        let name = format!("test-{}", ulid::Ulid::generate().to_string().to_lowercase());
        let (requests, results) = (format!("{name}-requests"), format!("{name}-results"));
        let cloud = Self { services, requests, results, name };
        let admin: AdminClient<_> = cloud.kafka().create().unwrap();
        let topic = |name| {
            NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)).set("max.message.bytes", "20971520")
        };
        let topics = [topic(cloud.requests.as_str()), topic(cloud.results.as_str())];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let made = runtime.block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap();
        made.into_iter().for_each(|topic| drop(topic.unwrap()));
        cloud
    }

    /// The variables of a deployment.
    pub fn env(&self) -> Vec<(String, String)> {
        let prefix = |name| (name, self.name.clone());
        let (redis, s3) = (self.services.redis().env(), self.services.s3().env());
        let prefixes = [prefix("WEIR__REDIS__PREFIX"), prefix("WEIR__S3__PREFIX")];
        let others = redis.into_iter().chain(s3).chain(prefixes);
        let mut env = self.kafka_env();
        env.extend(others.map(|(name, value)| (name.to_owned(), value)));
        env
    }

    /// The Kafka variables, which are all that an edge node has.
    pub fn kafka_env(&self) -> Vec<(String, String)> {
        let mut env = self.services.kafka().env(&self.requests, &self.results);
        env.push(("KAFKA_GROUP_ID", format!("{}-workers", self.name)));
        env.push(("WEIR__FETCH__ALLOW_NETWORKS", "127.0.0.0/8".to_owned()));
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn start(&self, command: &str, more: &[(&str, &str)]) -> Daemon {
        let data = TempDir::new().unwrap();
        let mut program = weir();
        program.args([command, "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path());
        program.env("WEIR__LOG__FORMAT", "json").envs(self.env()).envs(more.iter().copied());
        Daemon::spawn(program, data)
    }

    /// The API.
    pub fn serve(&self, more: &[(&str, &str)]) -> Daemon {
        self.start("serve", more)
    }

    /// A worker.
    pub fn worker(&self, more: &[(&str, &str)]) -> Daemon {
        self.start("worker", more)
    }

    /// Client configuration with credentials of the broker.
    pub fn kafka(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (name, value) in self.services.kafka().client_settings() {
            client.set(name, value);
        }
        client
    }

    /// Writes messages to the requests topic, like any producer.
    pub fn produce(&self, messages: &[&[u8]]) {
        let producer: BaseProducer = self.kafka().set("message.max.bytes", "20000000").create().unwrap();
        for message in messages {
            producer
                .send(BaseRecord::<(), _>::to(&self.requests).payload(*message))
                .map_err(|(e, _)| e)
                .unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    /// All committed records of the results topic, read until `enough` is true and two seconds
    /// longer.
    pub fn results(&self, timeout: Duration, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let consumer: BaseConsumer = self
            .kafka()
            .set("group.id", format!("{}-reader-{}", self.name, ulid::Ulid::generate()))
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let from = rdkafka::Offset::Beginning;
            partitions.add_partition_offset(&self.results, partition, from).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        let (mut seen, mut until) = (Vec::new(), Instant::now() + timeout);
        let mut complete = false;
        while Instant::now() < until {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => seen.push(with_place(&message)),
                Some(Err(error)) => eprintln!("the reader of results: {error}"),
                None if !complete && enough(&seen) => {
                    complete = true;
                    // Duplicates would arrive now.
                    until = Instant::now() + Duration::from_secs(2);
                }
                None => {}
            }
        }
        assert!(complete, "the results topic holds {} records, and that is not enough", seen.len());
        seen
    }
}

/// A record of the results topic with its position.
fn with_place(message: &BorrowedMessage<'_>) -> Value {
    let mut record: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
    let place = format!("{}:{} of {:?}", message.partition(), message.offset(), message.timestamp());
    record["place"] = place.into();
    record
}

/// The value of a metric of the daemon.
pub fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.get("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no metric {name} in\n{text}")).parse().unwrap()
}

/// Waits until a worker has partitions of the requests topic.
pub fn has_work(worker: &Daemon) {
    wait_until("the worker has partitions", || metric(worker, "weir_batch_partitions") >= 1.0);
}

/// How often each image of a batch is in these records.
pub fn images(records: &[Value], request_id: &str) -> HashMap<u64, usize> {
    let mut counts = HashMap::new();
    for record in records.iter().filter(|r| r["kind"] == "batch_item" && r["request_id"] == request_id) {
        *counts.entry(record["index"].as_u64().unwrap()).or_default() += 1;
    }
    counts
}

/// How often each prediction is in these records, by the id of its request.
pub fn predictions(records: &[Value]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for record in records.iter().filter(|r| r["kind"] == "prediction") {
        *counts.entry(record["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

/// Polls a batch until it is finished.
pub fn finished(api: &Daemon, request_id: &str, timeout: Duration) -> Value {
    let until = Instant::now() + timeout;
    loop {
        let reply = api.get(&format!("/batch/status/{request_id}"));
        let status = if reply.status == 200 { reply.json() } else { Value::Null };
        let cancelled = status["status"] == "cancelled" && status["results_url"].is_string();
        if status["status"] == "completed" || status["status"] == "failed" || cancelled {
            return status;
        }
        assert!(Instant::now() < until, "batch {request_id} is not finished: {}", reply.text());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The lines of a batch's results object, as the API gives them.
pub fn lines(api: &Daemon, request_id: &str) -> Vec<Value> {
    let reply = api.get(&format!("/batch/results/{request_id}"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
