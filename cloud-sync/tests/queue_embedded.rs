//! The contract of a job queue, for the one in a file.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "contract/queue.rs"]
mod contract;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloud_sync::outbox::{Outbox, OutboxConfig, Reader};
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig, JobQueue};
use serde_json::Value;
use tempfile::TempDir;

struct Embedded {
    dir: TempDir,
    outbox: Arc<Outbox>,
}

fn open(dir: &Path, inflight: usize, outbox: &Arc<Outbox>) -> Arc<dyn JobQueue> {
    let config = EmbeddedQueueConfig { dir: dir.join("queue"), inflight, max_bytes: 64 << 20 };
    let start = Instant::now();
    loop {
        match EmbeddedQueue::open(config.clone(), Arc::clone(outbox)) {
            Ok(queue) => break Arc::new(queue),
            // An abandoned call of the previous handle may still be running.
            Err(error) if error.in_full().contains("in use") && start.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{}", error.in_full()),
        }
    }
}

#[async_trait]
impl contract::Harness for Embedded {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::open(OutboxConfig::new(dir.path().join("outbox"))).unwrap();
        Self { dir, outbox: Arc::new(outbox) }
    }

    async fn open(&self, inflight: usize) -> Arc<dyn JobQueue> {
        open(self.dir.path(), inflight, &self.outbox)
    }

    async fn crash(&self, queue: Arc<dyn JobQueue>) {
        drop(queue);
    }

    async fn published(&self, _: usize) -> Vec<String> {
        let events = Reader::open(self.outbox.dir()).unwrap();
        let id = |payload: Vec<u8>| {
            serde_json::from_slice::<Value>(&payload).unwrap()["id"].as_str().unwrap().to_owned()
        };
        events.map(|event| id(event.unwrap().payload)).collect()
    }
}

contract::suite!(Embedded);
