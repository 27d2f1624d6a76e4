//! Everything that uses Kafka, against a real broker.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod checks;
#[path = "../contract/queue.rs"]
mod contract;
mod queue;
mod support;
mod transactions;

use std::sync::Arc;

use async_trait::async_trait;
use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::kafka::KafkaConfig;
use cloud_sync::queue::{JobQueue, KafkaQueue};

use support::{committed_when, config_of, make_topic, queue_config};

struct Broker(KafkaConfig);

#[async_trait]
impl contract::Harness for Broker {
    async fn new() -> Self {
        let config = config_of(test_services::shared());
        // As many partitions as it takes for the keys of the suite's first few jobs to differ: a job on a partition
        // is acknowledged with those before it.
        make_topic(&config, &config.requests_topic, 5, &[("max.message.bytes", "20971520")]);
        // One, so that what consumers see has an order.
        make_topic(&config, &config.results_topic, 1, &[]);
        Self(config)
    }

    async fn open(&self, inflight: usize) -> Arc<dyn JobQueue> {
        Arc::new(KafkaQueue::new(&self.0, &queue_config(inflight), LinkHealth::new(Link::Kafka)))
    }

    async fn crash(&self, queue: Arc<dyn JobQueue>) {
        drop(queue);
    }

    async fn published(&self, count: usize) -> Vec<String> {
        let config = self.0.clone();
        let read = move || {
            let seen = committed_when(&config, &config.results_topic, count);
            seen.iter().map(|seen| id_of(&seen.payload)).collect()
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }
}

fn id_of(payload: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(payload).unwrap();
    json["id"].as_str().unwrap().to_owned()
}

contract::suite!(Broker, shared);
